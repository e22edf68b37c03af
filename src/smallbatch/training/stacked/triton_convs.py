"""The convolutions of K lanes by the kernels of :mod:`~training.stacked.triton_kernels`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from smallbatch.training.stacked import triton_kernels
from smallbatch.training.stacked.convs import Shortcut
from smallbatch.training.stacked.inputs import Shared

# Without types: the constants among their parameters are given as plain numbers.
_CONVOLVE: Any = triton_kernels.convolve
_CONVOLVE_BACK: Any = triton_kernels.convolve_back
_CORRELATE: Any = triton_kernels.correlate

# How float32 is multiplied: by the ordinary units; by the matrix units in three TF32 products,
# whose error is that of float32 within a small factor; by those in one. bf16 has one way.
Dot = Literal["ieee", "tf32x3", "tf32"]
FLOAT32_DOT: Dot = "tf32x3"  # of `precision: float32`

# Pixels of a lane from which on a block is as large as registers allow; below, blocks of 64 pixels
# keep more of the GPU's processors busy.
MANY_PIXELS = 2**14
# Values of such a block: the ordinary units want each loaded value used often; with the matrix
# units more than this spills registers (seen in what the compiler makes for Hopper).
VALUES: dict[Dot, int] = {"ieee": 4096, "tf32x3": 2048, "tf32": 2048}
PARTS = 32  # sums at most that a weight gradient is split into
SPAN = 1024  # pixels at least in each of them
LONGEST = 2**13  # and at most, whatever PARTS: matrix units truncate as they accumulate


class Triton:
    """Implicit GEMM with the epilogues inside.

    Args:
        dot: how float32 is multiplied.
    """

    def __init__(self, dot: Dot = "ieee") -> None:
        self.dot: Dot = dot

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        shortcut: Shortcut | None = None,
        relu: bool = False,
    ) -> Tensor:
        """See `Convs`."""
        k, _, c, _, _ = weight.shape
        pixels = x.shape[2] * x.shape[3]
        layout = (len(x), *x.shape[2:], c * pixels, k * c * pixels)
        return self._forward(x, layout, None, weight, bias, stride, shortcut, relu)

    def forward_shared(
        self, shared: Shared, weight: Tensor, bias: Tensor | None, stride: int, relu: bool
    ) -> Tensor:
        """See `Convs`."""
        images, source = shared.images, shared.source
        return self._forward(images, _layout(shared), source, weight, bias, stride, None, relu)

    def _forward(
        self, x: Tensor, layout: tuple[int, ...], source: Tensor | None, weight: Tensor,
        bias: Tensor | None, stride: int, shortcut: Shortcut | None, relu: bool,
    ) -> Tensor:  # fmt: skip
        k, out, c, size, _ = weight.shape
        m, h, w, x_source, x_example = layout
        x = x.contiguous()
        oh, ow = -(-h // stride), -(-w // stride)
        y = x.new_empty(m, k * out, oh, ow)
        skip, skip_stride, cx, xh, xw = x, 1, 0, 1, 1
        if shortcut is not None:
            skip, skip_stride = shortcut.x.contiguous(), shortcut.stride
            cx, xh, xw = skip.shape[1] // k, *skip.shape[2:]
        flat, reduced = _reduction(c, size)
        rows = min(_power(out), 64)
        block = _pixels(m * oh * ow, rows, self.dot)
        grid = (_blocks(m * oh * ow, block), _blocks(out, rows), k)
        _CONVOLVE[grid](
            x, weight, weight if bias is None else bias, skip, x if source is None else source, y,
            m, k, h, w, oh, ow, xh, xw, weight.stride(0), 0 if bias is None else bias.stride(0),
            x_source, x_example,
            C=c, O=out, SIZE=size, STRIDE=stride, BC=reduced, BO=rows, BP=block, FLAT=flat,
            SOURCE=source is not None, BIAS=bias is not None, RELU=relu,
            CX=cx, XSTRIDE=skip_stride, DOT=self.dot,
        )  # fmt: skip
        return y

    def input_gradient(
        self, g: Tensor, weight: Tensor, x: Tensor, stride: int, shortcut: Tensor | None = None
    ) -> Tensor:
        """See `Convs`."""
        k, out, c, size, _ = weight.shape
        (m, _, h, w), (oh, ow) = x.shape, g.shape[2:]
        g, x = g.contiguous(), x.contiguous()
        of_x = torch.empty_like(x)
        channels, rows = min(_power(c), 64), min(_power(out), 32)
        pixels = m * -(-h // stride) * -(-w // stride)
        block = _pixels(pixels, channels, self.dot)
        grid = (_blocks(pixels, block) * stride**2, _blocks(c, channels), k)
        _CONVOLVE_BACK[grid](
            g, weight, x, g if shortcut is None else shortcut.contiguous(), of_x,
            m, k, h, w, oh, ow, weight.stride(0),
            C=c, O=out, SIZE=size, STRIDE=stride, BC=channels, BO=rows, BP=block,
            SHORTCUT=shortcut is not None, DOT=self.dot,
        )  # fmt: skip
        return of_x

    def weight_gradient(self, g: Tensor, x: Tensor, out: Tensor, stride: int) -> None:
        """See `Convs`."""
        c, pixels = out.shape[2], x.shape[2] * x.shape[3]
        layout = (len(x), *x.shape[2:], c * pixels, x.shape[1] * pixels)
        self._weight_gradient(g, x, layout, None, out, stride)

    def weight_gradient_shared(self, g: Tensor, shared: Shared, out: Tensor, stride: int) -> None:
        """See `Convs`."""
        self._weight_gradient(g, shared.images, _layout(shared), shared.source, out, stride)

    def _weight_gradient(
        self, g: Tensor, x: Tensor, layout: tuple[int, ...], source: Tensor | None, out: Tensor,
        stride: int,
    ) -> None:  # fmt: skip
        k, rows, c, size, _ = out.shape
        m, h, w, x_source, x_example = layout
        oh, ow = g.shape[2:]
        g, x = g.contiguous(), x.contiguous()
        flat, columns = _reduction(c, size)
        # Of the lane's own shape alone: how it is split decides the rounding.
        pixels = m * oh * ow
        parts = max(1, min(PARTS, pixels // SPAN), pixels // LONGEST)
        span = _blocks(m * oh * ow, parts * 64) * 64
        sums = out if parts == 1 else g.new_empty(parts, *out.shape, dtype=torch.float32)
        high = min(_power(rows), 64)
        wide = _blocks(c * size * size, columns) if flat else _blocks(c, columns) * size * size
        _CORRELATE[(_blocks(rows, high) * wide, parts, k)](
            g, x, x if source is None else source, sums,
            m, k, h, w, oh, ow, span, 0 if parts == 1 else sums.stride(0), sums.stride(-5),
            x_source, x_example,
            C=c, O=rows, SIZE=size, STRIDE=stride, BC=columns, BO=high, BP=64, FLAT=flat,
            SOURCE=source is not None, DOT=self.dot,
        )  # fmt: skip
        if parts > 1:
            torch.sum(sums, 0, out=out)


def _layout(shared: Shared) -> tuple[int, ...]:
    """Examples, height, width, and the distance between sources and between examples."""
    _, m, c, h, w = shared.images.shape
    return m, h, w, m * c * h * w, c * h * w


def _reduction(c: int, size: int) -> tuple[bool, int]:
    """Whether channels and taps are reduced together, and the block of what is reduced."""
    if c < 16:
        return True, min(_power(c * size * size), 32)
    return False, min(_power(c), 32)


def _pixels(pixels: int, rows: int, dot: Dot) -> int:
    """Pixels of a block with so many rows."""
    return 64 if pixels < MANY_PIXELS else max(64, VALUES[dot] // rows)


def _power(n: int) -> int:
    """The next power of two, 16 or more: the least that a matrix product takes."""
    return max(16, 1 << (n - 1).bit_length())


def _blocks(n: int, size: int) -> int:
    return -(-n // size)
