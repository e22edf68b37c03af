"""Convolution as matrix products: the pixels that one kernel row meets, unrolled into rows.

For each kernel row dy a convolution is a product of a (Cout, C·kw) matrix with a matrix whose row
(c, dx) holds the image shifted by dx. Only the kw horizontal shifts need copies: a vertical shift
is an offset into the same memory. That is a third of the copies of im2col for a 3×3 kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Numbers in the unrolled rows of one block. On a CPU, what the matrix products read then comes from
# a core's second-level cache (1 MiB of float32); a GPU wants few large products.
BLOCK = {"cpu": 2**18, "cuda": 2**28}


@dataclass(frozen=True)
class _Plan:
    """Buffers and views for one shape of block.

    Attributes:
        inner: where the image goes in a buffer with zeros around it, (B, C, rows, W, m).
        rows: first and last (excluded) input row it takes, relative to the block's first.
        copies: destination and source of the copies from the buffer to the unrolled rows.
        taps: for each kernel row its matrix (B, C·kw, pixels·m).
    """

    inner: Tensor
    rows: tuple[int, int]
    copies: list[tuple[Tensor, Tensor]]
    taps: list[Tensor]


class Unroller:
    """Makes unrolled rows in buffers that are used again for every layer of the same shape."""

    def __init__(self, device: torch.device) -> None:
        self.block = BLOCK["cpu" if device.type == "cpu" else "cuda"]
        self._plans: dict[object, _Plan] = {}

    def clear(self) -> None:
        """Give the buffers back."""
        self._plans.clear()

    def blocks(
        self, x: Tensor, kernel: tuple[int, int], stride: int
    ) -> Iterator[tuple[slice, range, bool]]:
        """Cut a convolution's work into blocks whose unrolled rows stay in the cache.

        Whether a block has several whole lanes or a part of one depends on the layer and m alone,
        so a lane's arithmetic does not depend on how many lanes there are.

        Args:
            x: the input, (K, C, H, W, m).
            kernel: kh, kw.
            stride: of both directions.

        Yields:
            Lanes, output rows, and whether these are all rows.
        """
        k, c, h, w, m = x.shape
        height = -(-h // stride)
        row = c * kernel[1] * stride * -(-w // stride) * m  # numbers for one output row
        if row * height <= self.block:
            size = self.block // (row * height)
            for start in range(0, k, size):
                yield slice(start, min(start + size, k)), range(height), True
            return
        # At least 4 rows: each block repeats kh - 1 rows of its neighbour.
        parts = -(-height // max(4, self.block // row))
        edges = [part * height // parts for part in range(parts + 1)]
        for lane in range(k):
            for i in range(parts):
                yield slice(lane, lane + 1), range(edges[i], edges[i + 1]), parts == 1

    def unroll(
        self, x: Tensor, kernel: tuple[int, int], stride: int, rows: range, mirrored: bool
    ) -> list[Tensor]:
        """Unroll what the output rows ``rows`` need of ``x`` (B, C, H, W, m).

        Args:
            x: the lanes of a block.
            kernel: kh, kw; the padding is kh // 2 and kw // 2 zeros on every side.
            stride: of both directions.
            rows: output rows.
            mirrored: shift the other way, for gradients, with the order (kw, C) instead of (C, kw).

        Returns:
            For each kernel row a (B, C·kw, pixels·m) view, valid until the next call.
        """
        height = x.shape[2]
        first = rows.start * stride - kernel[0] // 2
        above, below = max(0, -first), height - first
        # Blocks away from both edges share a plan.
        needed = stride * (len(rows) + (kernel[0] - 1) // stride)
        key = (x.shape[:2], x.shape[3:], kernel, stride, len(rows), above, min(below, needed),
               mirrored, x.dtype)  # fmt: skip
        plan = self._plans.get(key)
        if plan is None:
            plan = _plan(x, kernel, stride, len(rows), (above, min(below, needed)), mirrored)
            self._plans[key] = plan
        start, stop = first + plan.rows[0], first + plan.rows[1]
        plan.inner.copy_(x if stop - start == height else x[:, :, start:stop])
        for destination, source in plan.copies:
            destination.copy_(source)
        return plan.taps


def _plan(
    x: Tensor,
    kernel: tuple[int, int],
    stride: int,
    height: int,
    rows: tuple[int, int],
    mirrored: bool,
) -> _Plan:
    b, c, _, w, m = x.shape
    (kh, kw), s = kernel, stride
    width = -(-w // s)
    steps = height + (kh - 1) // s  # every s-th row, beginning at each of the s phases
    padded = x.new_zeros(b, c, s * steps, w + kw - 1, m)
    inner = padded[:, :, rows[0] : rows[1], kw // 2 : kw // 2 + w]
    lane, channel, row, pixel, one = padded.stride()
    # A stride of s: phase p of the rows holds rows p, p + s, …, so that kernel row dy finds its
    # rows next to each other in phase dy % s.
    source = padded.as_strided(
        (b, c, kw, s, steps, width, m), (lane, channel, pixel, row, s * row, s * pixel, one)
    )
    if mirrored:
        unrolled = x.new_empty(b, kw, c, s, steps, width, m)
        copies = [(unrolled[:, dx], source[:, :, kw - 1 - dx]) for dx in range(kw)]
    else:
        unrolled = x.new_empty(source.shape)
        copies = [(unrolled, source)]
    flat = unrolled.view(b, c * kw, s * steps * width * m)
    line = width * m
    starts = [(dy % s * steps + dy // s) * line for dy in range(kh)]
    taps = [flat[:, :, start : start + height * line] for start in starts]
    if mirrored:  # input row y meets kernel row dy at output row y + kh // 2 - dy
        taps.reverse()
    return _Plan(inner, rows, copies, taps)
