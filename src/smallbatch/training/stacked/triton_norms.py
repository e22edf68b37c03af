"""Batch norm of K lanes in one kernel a pass, with the shortcut and the ReLU that follow it.

Torch's takes three kernels forward and two backward, copies of scale, shift and their gradients
(which lie apart, lane by lane), and one each for shortcut and ReLU: at m = 2, where a kernel costs
its launch, most of a step.

A program has one channel of one lane for one sub-batch: all of its pixels, read twice. Statistics
are taken of differences from the first value, so that a large mean costs no digits.
"""

# ruff: noqa: N803 - constants of a kernel are in upper case
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from smallbatch.training.stacked.convs import Shortcut


@triton.jit(do_not_specialize=["m", "lanes"])
def normalise(
    x, scale, shift, shortcut, mean, invstd, running_mean, running_var, y,
    m, lanes, pixels, width, size, xh, xw, affine_lane, momentum, eps,
    C: tl.constexpr, BLOCK: tl.constexpr, RUNNING: tl.constexpr,
    CX: tl.constexpr, XSTRIDE: tl.constexpr,
):  # fmt: skip
    """Y = relu(norm(x) + shortcut) by sub-batches of ``size`` examples; keeps mean and 1/std.

    RUNNING: also moves the running statistics, where there is a single sub-batch; otherwise
    ``running_var`` (sub-batches, K·C) gets each one's unbiased variance.
    """
    channel, group = tl.program_id(0), tl.program_id(1)
    lane, c = channel // C, channel % C
    first = group * size
    total = tl.minimum(size, m - first) * pixels
    example = lanes * C * pixels
    base = x + channel * pixels
    origin = tl.load(base + first.to(tl.int64) * example).to(tl.float32)
    sums, squares = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for i0 in range(0, total, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        at = base + (first + i // pixels).to(tl.int64) * example + i % pixels
        values = tl.load(at, mask=i < total, other=0.0).to(tl.float32)
        values = tl.where(i < total, values - origin, 0.0)
        sums += values
        squares += values * values
    offset = tl.sum(sums) / total
    var = tl.sum(squares) / total - offset * offset
    # Sums that overflow are an infinite variance, as torch's; tl.maximum would make a NaN 0.
    var = tl.where(var != var, float("inf"), tl.where(var < 0, 0.0, var))
    average, inverse = origin + offset, 1 / tl.sqrt(var + eps)
    unbiased = var * (total / (total - 1))
    here = group * (lanes * C) + channel
    tl.store(mean + here, average)
    tl.store(invstd + here, inverse)
    if RUNNING:
        before = tl.load(running_mean + channel)
        tl.store(running_mean + channel, before + momentum * (average - before))
        before = tl.load(running_var + channel)
        tl.store(running_var + channel, before + momentum * (unbiased - before))
    else:
        tl.store(running_var + here, unbiased)
    factor = tl.load(scale + lane * affine_lane + c).to(tl.float32) * inverse
    added = tl.load(shift + lane * affine_lane + c).to(tl.float32)
    for i0 in range(0, total, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        n, pixel = (first + i // pixels).to(tl.int64), i % pixels
        values = tl.load(base + n * example + pixel, mask=i < total, other=0.0).to(tl.float32)
        values = (values - average) * factor + added
        if CX > 0:
            skip = shortcut + ((n * lanes + lane) * CX + c) * (xh * xw)
            skip += pixel // width * XSTRIDE * xw + pixel % width * XSTRIDE
            values += tl.load(skip, mask=(i < total) & (c < CX), other=0.0).to(tl.float32)
        values = tl.where(values < 0, 0.0, values)  # NaN stays
        out = y + channel * pixels + n * example + pixel
        tl.store(out, values.to(y.dtype.element_ty), mask=i < total)


@triton.jit(do_not_specialize=["m", "lanes"])
def normalise_back(
    g, x, scale, mean, invstd, of_x, of_scale, of_shift,
    m, lanes, pixels, size, affine_lane, gradient_group, gradient_lane,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of input, scale and shift from that of the normalised values."""
    channel, group = tl.program_id(0), tl.program_id(1)
    lane, c = channel // C, channel % C
    first = group * size
    total = tl.minimum(size, m - first) * pixels
    example = lanes * C * pixels
    average = tl.load(mean + group * (lanes * C) + channel)
    inverse = tl.load(invstd + group * (lanes * C) + channel)
    sums, products = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for i0 in range(0, total, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        at = channel * pixels + (first + i // pixels).to(tl.int64) * example + i % pixels
        gradients = tl.load(g + at, mask=i < total, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=i < total, other=0.0).to(tl.float32)
        sums += gradients
        products += tl.where(i < total, gradients * (values - average), 0.0)
    of_added, of_factor = tl.sum(sums), tl.sum(products) * inverse
    here = group * gradient_group + lane * gradient_lane + c
    tl.store(of_shift + here, of_added)
    tl.store(of_scale + here, of_factor)
    factor = tl.load(scale + lane * affine_lane + c).to(tl.float32) * inverse
    mean_gradient, slope = of_added / total, of_factor / total * inverse
    for i0 in range(0, total, BLOCK):
        i = i0 + tl.arange(0, BLOCK)
        at = channel * pixels + (first + i // pixels).to(tl.int64) * example + i % pixels
        gradients = tl.load(g + at, mask=i < total, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=i < total, other=0.0).to(tl.float32)
        result = (gradients - mean_gradient - (values - average) * slope) * factor
        tl.store(of_x + at, result.to(of_x.dtype.element_ty), mask=i < total)


# Without types: the constants among their parameters are given as plain numbers.
_NORMALISE: Any = normalise
_NORMALISE_BACK: Any = normalise_back

BLOCK = 1024


class Moments(NamedTuple):
    """Means and 1/std of every sub-batch, (sub-batches, K·C) each."""

    mean: Tensor
    invstd: Tensor


def forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    running: tuple[Tensor, Tensor],
    size: int,
    momentum: float,
    eps: float,
    shortcut: Shortcut | None,
) -> tuple[Tensor, Moments]:
    """Relu(norm(x) + shortcut) in training mode, moving the running statistics.

    Args:
        x: (m, K·C, …), contiguous.
        scale: (K, C) with any stride between lanes.
        shift: likewise.
        running: mean and variance, (K·C,) each.
        size: examples of a sub-batch; the last one may be smaller.
        momentum: of the running statistics.
        eps: added to the variance.
        shortcut: a block's input.
    """
    (k, c), m, pixels = scale.shape, len(x), x[0, 0].numel()
    groups, x = -(-m // size), x.contiguous()
    moments = Moments(*x.new_empty(2, groups, k * c, dtype=torch.float32))
    y, var = torch.empty_like(x), running[1]
    if groups > 1:
        var = torch.empty_like(moments.mean)
    skip, stride, cx, xh, xw = x, 1, 0, 1, 1
    if shortcut is not None:
        skip, stride = shortcut.x.contiguous(), shortcut.stride
        cx, xh, xw = skip.shape[1] // k, *skip.shape[2:]
    _NORMALISE[(k * c, groups)](
        x, scale, shift, skip, *moments, running[0], var, y,
        m, k, pixels, x.shape[-1] if x.dim() > 2 else 1, size, xh, xw, scale.stride(0),
        momentum, eps,
        C=c, BLOCK=_block(size, pixels), RUNNING=groups == 1, CX=cx, XSTRIDE=stride,
    )  # fmt: skip
    if groups > 1:
        whole = m // size
        for total, values in zip(running, (moments.mean, var), strict=True):
            average = values[:whole].mean(0)
            if m % size:
                average.lerp_(values[whole], m % size / m)
            total.lerp_(average, momentum)
    return y, moments


def backward(
    g: Tensor,
    x: Tensor,
    scale: Tensor,
    moments: Moments,
    size: int,
    of_scale: Tensor,
    of_shift: Tensor,
) -> Tensor:
    """Gradient of ``x``; writes those of scale and shift into (K, C) each, of equal strides."""
    (k, c), m, groups = scale.shape, len(x), len(moments.mean)
    sums = of_scale, of_shift
    if groups > 1:
        sums = tuple(torch.empty(2, groups, k, c, dtype=torch.float32, device=x.device))
    of_x, pixels = torch.empty_like(x), x[0, 0].numel()
    _NORMALISE_BACK[(k * c, groups)](
        g.contiguous(), x.contiguous(), scale, *moments, of_x, *sums,
        m, k, pixels, size, scale.stride(0), k * c, sums[0].stride(-2),
        C=c, BLOCK=_block(size, pixels),
    )  # fmt: skip
    if groups > 1:
        torch.sum(sums[0], 0, out=of_scale)
        torch.sum(sums[1], 0, out=of_shift)
    return of_x


def _block(size: int, pixels: int) -> int:
    return min(BLOCK, max(32, 1 << (size * pixels - 1).bit_length()))


def agrees(device: torch.device) -> bool:
    """Whether these kernels give torch's numbers on a device."""
    x = torch.randn(4, 32, 8, 8, device=device)
    scale, shift = torch.rand(2, 1, 32, device=device)
    mine, theirs = torch.zeros(2, 2, 32, device=device)
    of_scale, of_shift = torch.empty(2, 1, 32, device=device)
    y, moments = forward(x, scale, shift, (mine[0], mine[1]), 4, 0.1, 1e-5, None)
    g = torch.randn_like(x) * (y > 0)
    of_x = backward(g, x, scale, moments, 4, of_scale, of_shift)
    expected, mean, invstd = torch.native_batch_norm(
        x, scale[0], shift[0], theirs[0], theirs[1], True, 0.1, 1e-5
    )
    gradients = torch.ops.aten.native_batch_norm_backward(
        g, x, scale[0], None, None, mean, invstd, True, 1e-5, [True] * 3
    )
    pairs = zip(
        (y, of_x, of_scale[0], of_shift[0], mine),
        (expected.relu(), *gradients, theirs),
        strict=True,
    )
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)
