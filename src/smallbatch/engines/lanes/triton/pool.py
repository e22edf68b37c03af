"""The reduced AlexNet's 3×3/2 SAME max pool of K lanes; its gradients add up in a fixed order."""

# ruff: noqa: N803, N806 - constants of a kernel are in upper case
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def pool(x, y, won, values, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """The maximum of nine pixels and the tap it is at (the first of equals); NaN is largest."""
    OH: tl.constexpr = (H + 1) // 2
    OW: tl.constexpr = (W + 1) // 2
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c, ox, oy, n = at % C, at // C % OW, at // (C * OW) % OH, at // (C * OW * OH)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    winner = tl.zeros((BLOCK,), tl.int32)
    for tap in tl.static_range(9):
        iy, ix = oy * 2 + tap // 3 - H % 2, ox * 2 + tap % 3 - W % 2
        inside = (at < values) & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        v = tl.load(x + ((n * H + iy) * W + ix) * C + c, mask=inside, other=float("-inf"))
        v = v.to(tl.float32)
        better = (v > best) | ((v != v) & (best == best))
        best, winner = tl.where(better, v, best), tl.where(better, tap, winner)
    tl.store(y + at, best.to(y.dtype.element_ty), mask=at < values)
    tl.store(won + at, winner.to(tl.int8), mask=at < values)


@triton.jit
def pool_back(
    g, won, of_x, values, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """A pixel's gradient: the sum over the windows, at most four, whose maximum it is."""
    OH: tl.constexpr = (H + 1) // 2
    OW: tl.constexpr = (W + 1) // 2
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c, ix, iy, n = at % C, at // C % W, at // (C * W) % H, at // (C * W * H)
    sums = tl.zeros((BLOCK,), tl.float32)
    for tap in tl.static_range(9):
        y2, x2 = iy + H % 2 - tap // 3, ix + W % 2 - tap % 3
        oy, ox = y2 // 2, x2 // 2
        there = (at < values) & (y2 >= 0) & (y2 % 2 == 0) & (oy < OH)
        there = there & (x2 >= 0) & (x2 % 2 == 0) & (ox < OW)
        window = ((n * OH + oy) * OW + ox) * C + c
        mine = there & (tl.load(won + window, mask=there, other=-1) == tap)
        sums += tl.load(g + window, mask=mine, other=0.0).to(tl.float32)
    tl.store(of_x + at, sums.to(of_x.dtype.element_ty), mask=at < values)


# Typed Any, because the kernels' constants are passed as plain numbers.
_POOL: Any = pool
_POOL_BACK: Any = pool_back


def forward(x: Tensor) -> tuple[Tensor, Tensor]:
    """(K, m, H, W, C) → (K, m, ⌈H/2⌉, ⌈W/2⌉, C), and the taps of the maxima, int8."""
    k, m, h, w, c = x.shape
    y = x.new_empty(k, m, -(-h // 2), -(-w // 2), c)
    won = torch.empty_like(y, dtype=torch.int8)
    _POOL[(-(-y.numel() // BLOCK),)](x, y, won, y.numel(), H=h, W=w, C=c, BLOCK=BLOCK)
    return y, won


def backward(g: Tensor, won: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Gradient of the input, whose shape is ``shape`` (K, m, H, W, C)."""
    _, _, h, w, c = shape
    of_x = g.new_empty(shape)
    _POOL_BACK[(-(-of_x.numel() // BLOCK),)](g, won, of_x, of_x.numel(), H=h, W=w, C=c, BLOCK=BLOCK)
    return of_x
