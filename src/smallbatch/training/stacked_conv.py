"""Convolution over K lanes, activations (K, C, H, W, m), with its backward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from smallbatch.training.lanes import Lanes
from smallbatch.training.unroll import Unroller


class Conv:
    """3×3 and other odd kernels with SAME padding, as products with unrolled rows of pixels."""

    def __init__(self, lanes: Lanes, unroller: Unroller, name: str, module: nn.Conv2d) -> None:
        kernel, stride = (module.kernel_size[0], module.kernel_size[1]), module.stride[0]
        if module.padding != (kernel[0] // 2, kernel[1] // 2) or module.groups != 1:
            raise ValueError(f"{name}: only plain convolutions with SAME padding can be stacked")
        self.lanes, self.unroller = lanes, unroller
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"
        self.kernel, self.stride, self.channels = kernel, stride, module.out_channels

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """(K, C, H, W, m) → (K, Cout, ⌈H / stride⌉, ⌈W / stride⌉, m)."""
        if training:
            self.x = x
        k, c, h, w, m = x.shape
        (kh, kw), s = self.kernel, self.stride
        weight = self.lanes.views[self.weight].view(k, kh, c * kw, self.channels).transpose(2, 3)
        out = x.new_empty(k, self.channels, -(-h // s), -(-w // s), m)
        _convolve(self.unroller, x, weight, out, self.kernel, s, mirrored=False)
        bias = self.lanes.views.get(self.bias)
        return out if bias is None else out.add_(bias[:, :, None, None, None])

    def backward(self, g: Tensor, needed: bool) -> Tensor:
        """Gradients of weight, bias and, if needed, input."""
        x = self.x
        k, c = x.shape[:2]
        (kh, kw), s = self.kernel, self.stride
        gradient = x.new_empty(kh, k, c * kw, self.channels)
        self._weight_gradient(g, gradient)
        shaped = gradient.view(kh, k, c, kw, self.channels).transpose(0, 1)
        self.lanes.gradients[self.weight] = shaped
        if self.bias in self.lanes.views:
            self.lanes.gradients[self.bias] = g.flatten(2).sum(2)
        if not needed:
            return g
        weight = self.lanes.views[self.weight]
        if s > 1:
            weight = weight.view(k, kh, c * kw, self.channels)
            return _spread(self.unroller, g, weight, x.shape, self.kernel, s)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        weight = weight.view(k, kh, c, kw * self.channels)
        _convolve(self.unroller, g, weight, out, self.kernel, 1, mirrored=True)
        return out

    def _weight_gradient(self, g: Tensor, gradient: Tensor) -> None:
        """Sum of g ⊗ unrolled x into ``gradient`` (kh, K, C·kw, Cout)."""
        flat_g = g.flatten(2)
        width = g.shape[3] * g.shape[4]
        for lanes, rows, whole in self.unroller.blocks(self.x, self.kernel, self.stride):
            taps = self.unroller.unroll(self.x[lanes], self.kernel, self.stride, rows, False)
            part = flat_g[lanes, :, rows.start * width : rows.stop * width].transpose(1, 2)
            for dy, tap in enumerate(taps):
                if whole:
                    torch.bmm(tap, part, out=gradient[dy, lanes])
                else:
                    # beta = 0 ignores what is there, NaN included.
                    gradient[dy, lanes.start].addmm_(tap[0], part[0], beta=float(rows.start > 0))


def _convolve(
    unroller: Unroller,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    kernel: tuple[int, int],
    stride: int,
    *,
    mirrored: bool,
) -> None:
    """Out = Σ over kernel rows of weight (K, kh, Cout, rows) @ unrolled x, block by block."""
    flat = out.flatten(2)
    width = out.shape[3] * out.shape[4]
    for lanes, rows, whole in unroller.blocks(x, kernel, stride):
        taps = unroller.unroll(x[lanes], kernel, stride, rows, mirrored)
        if whole:
            part = flat[lanes]
            torch.bmm(weight[lanes, 0], taps[0], out=part)
            for dy in range(1, kernel[0]):
                part.baddbmm_(weight[lanes, dy], taps[dy])
        else:
            part = flat[lanes.start, :, rows.start * width : rows.stop * width]
            for dy, tap in enumerate(taps):
                part.addmm_(weight[lanes.start, dy], tap[0], beta=float(dy > 0))


def _spread(
    unroller: Unroller,
    g: Tensor,
    weight: Tensor,
    shape: torch.Size,
    kernel: tuple[int, int],
    stride: int,
) -> Tensor:
    """Gradient of a strided convolution's input: each output pixel goes to those it was made from.

    Rows y ≡ py (mod stride) of the input meet only the kernel rows dy ≡ py + kh//2; for those, one
    product gives what all kw taps contribute, which then is added up column by column.

    Args:
        unroller: for the size of blocks.
        g: gradient of the output, (K, Cout, H', W', m).
        weight: (K, kh, C·kw, Cout).
        shape: of the input, (K, C, H, W, m).
        kernel: kh, kw.
        stride: of both directions.
    """
    (kh, kw), s, c, m = kernel, stride, shape[1], shape[4]
    # With kernels this small some input pixels meet no unshifted tap, or none at all.
    out = g.new_zeros(shape) if s > (min(kernel) + 1) // 2 else g.new_empty(shape)
    line, edge = g.shape[3] * m, kh // 2
    padded = pad(g, (0, 0, 0, 0, edge, edge)).flatten(2)
    for lanes, rows, _ in unroller.blocks(g, (1, kw), 1):
        for phase in range(s):
            target = out[lanes, :, phase::s][:, :, rows.start : rows.stop]
            taps = None
            for shift, dy in _taps(phase, kh, s):
                first, last = rows.start + edge + shift, rows.stop + edge + shift
                part = padded[lanes, :, first * line : last * line]
                if taps is None:
                    taps = torch.bmm(weight[lanes, dy], part)
                else:
                    taps.baddbmm_(weight[lanes, dy], part)
            if taps is not None:
                contributions = taps.view(len(target), c, kw, len(rows), -1, m)
                _add_columns(target, contributions[:, :, :, : target.shape[2]], s)
    return out


def _add_columns(target: Tensor, taps: Tensor, stride: int) -> None:
    """Add up taps (B, C, kw, rows, W', m) into ``target`` (B, C, rows, W, m)."""
    for phase in range(stride):
        columns = target[:, :, :, phase::stride]
        for shift, dx in _taps(phase, taps.shape[2], stride):
            start = max(0, -shift)
            stop = min(columns.shape[3], taps.shape[4] - shift)
            part = taps[:, :, dx, :, start + shift : stop + shift]
            if shift == 0:
                columns.copy_(part)
            else:
                columns[:, :, :, start:stop].add_(part)


def _taps(phase: int, size: int, stride: int) -> list[tuple[int, int]]:
    """Shift and index of the taps that input pixels ≡ phase meet; the unshifted one first."""
    reach = phase + size // 2
    found = [((reach - d) // stride, d) for d in range(size) if (reach - d) % stride == 0]
    return sorted(found, key=lambda tap: abs(tap[0]))
