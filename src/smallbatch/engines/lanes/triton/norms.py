"""Batch and ghost norm of K lanes, with the shortcut and the ReLU that follow.

A pass has two kernels: the first sums over stretches of pixels; the second combines the stretches
(Chan et al., 1979) and applies the result. For a small batch the second kernel does both. A
sub-batch has ``size`` examples of a lane, the last one possibly fewer. Activations are
(K, m, …, C); scale and shift are (K, C) with any stride between lanes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.triton import norm_kernels

# Typed Any, because the kernels' constants are passed as plain numbers.
_MOMENTS: Any = norm_kernels.moments
_NORMALISE: Any = norm_kernels.normalise
_SUMS_BACK: Any = norm_kernels.sums_back
_NORMALISE_BACK: Any = norm_kernels.normalise_back

STRETCHES = 32  # most stretches of a sub-batch
STRETCH = 2**13  # fewest values of a stretch
WHOLE = 2**12  # most pixels of a batch for which one program reads all of a channel
TILE = 2**11  # values that a program holds at a time


class Cut(NamedTuple):
    """How the work on sub-batches of ``size`` examples is divided.

    Attributes:
        groups: Number of sub-batches.
        span: Pixels of a stretch.
        stretches: Stretches of a sub-batch.
        channels: Channels of a tile.
        tile: Pixels of a tile.
        per: Tiles of each program of the second kernel.
        programs: Programs of the second kernel for a sub-batch and block of channels.
        whole: Whether a program reads all pixels, so that the first kernel is not needed.
    """

    groups: int
    span: int
    stretches: int
    channels: int
    tile: int
    per: int
    programs: int
    whole: bool = False


def cut(m: int, pixels: int, c: int, size: int) -> Cut:
    """The division for ``m`` examples of ``c`` channels; depends on the shape of a lane alone."""
    size = min(size, m)
    total = size * pixels
    if size == m and total <= WHOLE:
        # Such a program mostly waits for its loads, so few channels and few passes are best.
        padded = max(16, _power(total))
        channels = min(c & -c, max(4, 2 * TILE // padded))
        tile = min(padded, 2 * TILE // channels)
        return Cut(1, total, 1, channels, tile, _blocks(total, tile), 1, True)
    channels = min(c & -c, 64)
    tile = min(TILE // channels, max(16, _power(total)))
    stretches = max(1, min(STRETCHES, total * channels // STRETCH))
    span = _blocks(_blocks(total, stretches), tile) * tile
    per = 4 if total >= 64 * tile else 1
    programs = _blocks(total, tile * per)
    return Cut(_blocks(m, size), span, _blocks(total, span), channels, tile, per, programs)


def forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    running: tuple[Tensor, Tensor],
    size: int,
    momentum: float,
    eps: float,
    shortcut: Shortcut | None,
    training: bool = True,
) -> tuple[Tensor, Tensor]:
    """Relu(norm(x) + shortcut); in training mode also moves the running statistics.

    Args:
        x: (K, m, H, W, C) or (K, m, C), contiguous.
        scale: (K, C) with any stride between lanes.
        shift: (K, C) with the same stride.
        running: Running mean and variance, (K, C) each, contiguous.
        size: Examples of a sub-batch; the last one may be smaller.
        momentum: The momentum of the running statistics.
        eps: Added to the variance.
        shortcut: The block's input, to be added, or None.
        training: Whether to normalise by the batch, not by the running statistics.

    Returns:
        The output, and means and 1/std of the sub-batches, (2, K, sub-batches, C).
    """
    k, m, *side, c = x.shape
    h, w = side or (1, 1)
    size = min(size, m) if training else m
    by = cut(m, h * w, c, size)
    y, kept = torch.empty_like(x), x.new_empty(2, k, by.groups, c, dtype=torch.float32)
    partial = kept
    if training and not by.whole:
        partial = x.new_empty(k, by.groups, by.stretches, 2, c, dtype=torch.float32)
        _MOMENTS[by.stretches * (c // by.channels), by.groups, k](
            x, partial, m, size, by.span, C=c, PIXELS=h * w, BC=by.channels, BP=by.tile
        )
    skip, xs, xh, xw, cx = x, 1, 1, 1, 0
    if shortcut is not None:
        skip, xs, (xh, xw, cx) = shortcut.x, shortcut.stride, shortcut.x.shape[2:]
    _NORMALISE[by.programs * (c // by.channels), by.groups, k](
        x, scale, shift, skip, partial, kept, *running, y,
        m, size, by.span, by.stretches, by.per, scale.stride(0), momentum, eps,
        C=c, H=h, W=w, BC=by.channels, BP=by.tile, COUNT=_power(by.stretches), TRAINING=training,
        WHOLE=by.whole, CX=cx, XH=xh, XW=xw, XS=xs,
    )  # fmt: skip
    return y, kept


def backward(
    g: Tensor, x: Tensor, scale: Tensor, kept: Tensor, size: int, of_scale: Tensor, of_shift: Tensor
) -> Tensor:
    """Gradient of ``x``.

    Those of scale and shift are written to ``of_scale`` and ``of_shift``, (K, C) each, which have
    equal strides.
    """
    k, m, *side, c = x.shape
    h, w = side or (1, 1)
    size = min(size, m)
    by = cut(m, h * w, c, size)
    partial = kept
    if not by.whole:
        partial = x.new_empty(k, by.groups, by.stretches, 2, c, dtype=torch.float32)
        _SUMS_BACK[by.stretches * (c // by.channels), by.groups, k](
            g, x, kept, partial, m, size, by.span, C=c, PIXELS=h * w, BC=by.channels, BP=by.tile
        )
    of_x = torch.empty_like(x)
    _NORMALISE_BACK[by.programs * (c // by.channels), by.groups, k](
        g, x, scale, kept, partial, of_x, of_scale, of_shift,
        m, size, by.stretches, by.per, scale.stride(0), of_scale.stride(0),
        C=c, PIXELS=h * w, BC=by.channels, BP=by.tile, COUNT=_power(by.stretches),
        WHOLE=by.whole,
    )  # fmt: skip
    return of_x


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def agrees(device: torch.device) -> bool:
    """Whether these kernels agree with torch on a device."""
    x = torch.randn(1, 4, 8, 8, 32, device=device)
    scale, shift = torch.rand(2, 1, 32, device=device)
    mine, theirs = torch.zeros(2, 1, 32, device=device), torch.zeros(2, 32, device=device)
    of_scale, of_shift = torch.empty(2, 1, 32, device=device)
    y, kept = forward(x, scale, shift, (mine[0], mine[1]), 4, 0.1, 1e-5, None)
    g = torch.randn_like(x) * (y > 0)
    of_x = backward(g, x, scale, kept, 4, of_scale, of_shift)
    plain, g = (t[0].permute(0, 3, 1, 2) for t in (x, g))
    expected, mean, invstd = torch.native_batch_norm(
        plain, scale[0], shift[0], theirs[0], theirs[1], True, 0.1, 1e-5
    )
    gradients = torch.ops.aten.native_batch_norm_backward(
        g, plain, scale[0], None, None, mean, invstd, True, 1e-5, [True] * 3
    )
    y, of_x = (t[0].permute(0, 3, 1, 2) for t in (y, of_x))
    pairs = zip(
        (y, of_x, of_scale[0], of_shift[0], mine[:, 0]),
        (expected.relu(), *gradients, theirs),
        strict=True,
    )
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in pairs)
