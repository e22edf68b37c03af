"""The end of a ResNet over K lanes as Triton kernels: global average pool and FC layer.

Torch would launch ten kernels for very few numbers, which at m = 2 takes a tenth of a step.
Activations are (K, m, pixels, C), the output of a ReLU; features, the means over pixels, (K, m, C)
in float32; logits and their gradients (K, m, classes).
"""

# ruff: noqa: N803 - constants of a kernel are in upper case
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2**12  # values of an activation that a program holds at a time
EXAMPLES = 32  # examples that a program adds up at a time


@triton.jit(do_not_specialize=["m"])
def pool_and_score(
    x, weight, bias, features, logits, m, weight_lane, bias_lane,
    PIXELS: tl.constexpr, C: tl.constexpr, CLASSES: tl.constexpr,
    BC: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Features and logits of one example of a lane."""
    lane = tl.program_id(1).to(tl.int64)
    example = lane * m + tl.program_id(0)
    c, k, p = tl.arange(0, BC), tl.arange(0, BK), tl.arange(0, BP)
    sums = tl.zeros((BC,), tl.float32)
    for p0 in range(0, PIXELS, BP):
        there = (p0 + p < PIXELS)[:, None] & (c < C)[None, :]
        at = (example * PIXELS + p0 + p)[:, None] * C + c[None, :]
        sums += tl.sum(tl.load(x + at, mask=there, other=0.0).to(tl.float32), 0)
    mean = sums / PIXELS
    tl.store(features + example * C + c, mean, mask=c < C)
    known = (k < CLASSES)[:, None] & (c < C)[None, :]
    weights = weight + lane * weight_lane + k[:, None] * C + c[None, :]
    result = tl.sum(tl.load(weights, mask=known, other=0.0).to(tl.float32) * mean[None, :], 1)
    if BIAS:
        result += tl.load(bias + lane * bias_lane + k, mask=k < CLASSES, other=0.0).to(tl.float32)
    tl.store(logits + example * CLASSES + k, result, mask=k < CLASSES)


@triton.jit(do_not_specialize=["m"])
def spread_back(
    g, weight, x, of_x, m, weight_lane,
    PIXELS: tl.constexpr, C: tl.constexpr, CLASSES: tl.constexpr,
    BC: tl.constexpr, BK: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Gradient of one example's pixels: an equal share for each above 0, and 0 for the others."""
    lane = tl.program_id(1).to(tl.int64)
    example = lane * m + tl.program_id(0)
    c, k, p = tl.arange(0, BC), tl.arange(0, BK), tl.arange(0, BP)
    its = tl.load(g + example * CLASSES + k, mask=k < CLASSES, other=0.0).to(tl.float32)
    known = (k < CLASSES)[:, None] & (c < C)[None, :]
    weights = weight + lane * weight_lane + k[:, None] * C + c[None, :]
    of_mean = tl.sum(tl.load(weights, mask=known, other=0.0).to(tl.float32) * its[:, None], 0)
    share = (of_mean / PIXELS)[None, :]
    for p0 in range(0, PIXELS, BP):
        there = (p0 + p < PIXELS)[:, None] & (c < C)[None, :]
        at = (example * PIXELS + p0 + p)[:, None] * C + c[None, :]
        made = tl.load(x + at, mask=there, other=0.0)
        result = tl.where(made > 0, share, 0.0)
        tl.store(of_x + at, result.to(of_x.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["m", "span"])
def weight_sums(
    g, features, of_weight, of_bias, m, span, out_part, out_lane,
    C: tl.constexpr, CLASSES: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """Gradients of weights and, with BIAS, biases; a part is the sum of ``span`` blocks."""
    lane, part = tl.program_id(1).to(tl.int64), tl.program_id(0)
    c, k = tl.arange(0, BC), tl.arange(0, BK)
    acc, bias = tl.zeros((BK, BC), tl.float32), tl.zeros((BK,), tl.float32)
    for block in range(part * span, part * span + span):
        n = block * BN + tl.arange(0, BN)
        example = (lane * m + n)[:, None]
        known = (n < m)[:, None] & (k < CLASSES)[None, :]
        its = tl.load(g + example * CLASSES + k[None, :], mask=known, other=0.0).to(tl.float32)
        there = (n < m)[:, None] & (c < C)[None, :]
        mean = tl.load(features + example * C + c[None, :], mask=there, other=0.0)
        acc = tl.dot(tl.trans(its), mean, acc, input_precision="tf32x3")
        bias += tl.sum(its, 0)
    at = part.to(tl.int64) * out_part + lane * out_lane
    written = (k < CLASSES)[:, None] & (c < C)[None, :]
    tl.store(of_weight + at + k[:, None] * C + c[None, :], acc, mask=written)
    if BIAS:
        tl.store(of_bias + at + k, bias, mask=k < CLASSES)


# Typed Any, because the kernels' constants are passed as plain numbers.
_POOL_AND_SCORE: Any = pool_and_score
_SPREAD_BACK: Any = spread_back
_WEIGHT_SUMS: Any = weight_sums


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features and logits.

    Args:
        x: (K, m, H, W, C), contiguous.
        weight: (K, classes, C), with any stride between lanes.
        bias: (K, classes), likewise, or None.
    """
    (k, m, h, w, c), classes = x.shape, weight.shape[1]
    features, logits = (x.new_empty(k, m, n, dtype=torch.float32) for n in (c, classes))
    shift, shift_lane = (weight, 0) if bias is None else (bias, bias.stride(0))
    _POOL_AND_SCORE[m, k](
        x, weight, shift, features, logits, m, weight.stride(0), shift_lane,
        PIXELS=h * w, CLASSES=classes, BIAS=bias is not None, **_cut(h * w, c, classes),
    )  # fmt: skip
    return features, logits


def backward(g: Tensor, weight: Tensor, x: Tensor) -> Tensor:
    """Gradient of ``x``, from that of the logits."""
    (k, m, h, w, c), classes = x.shape, weight.shape[1]
    of_x = torch.empty_like(x)
    _SPREAD_BACK[m, k](
        g, weight, x, of_x, m, weight.stride(0),
        PIXELS=h * w, CLASSES=classes, **_cut(h * w, c, classes),
    )  # fmt: skip
    return of_x


def weight_gradient(g: Tensor, features: Tensor, out: Tensor, of_bias: Tensor | None) -> None:
    """Write the gradients of weights and biases.

    Args:
        g: The gradient of the logits.
        features: The features of the forward pass.
        out: Where the weights' gradient goes, (parts, K, classes, C).
        of_bias: Where the biases' gradient goes, (parts, K, classes), with the same strides between
            parts and between lanes; None without biases.
    """
    (k, m, c), (parts, _, classes) = features.shape, out.shape[:3]
    _WEIGHT_SUMS[parts, k](
        g, features, out, out if of_bias is None else of_bias, m,
        -(-m // (EXAMPLES * parts)), out.stride(0), out.stride(1),
        C=c, BC=_power(c), CLASSES=classes, BK=_power(classes), BN=EXAMPLES,
        BIAS=of_bias is not None,
    )  # fmt: skip


def agrees(device: torch.device) -> bool:
    """Whether these kernels agree with torch on a device."""
    x, g = torch.randn(2, 3, 2, 2, 16, device=device).relu(), torch.randn(2, 3, 5, device=device)
    weight, bias = torch.randn(2, 5, 16, device=device), torch.randn(2, 5, device=device)
    features, logits = forward(x, weight, bias)
    rows = torch.empty(1, 2, 85, device=device)
    of_weight, of_bias = rows[..., :80].unflatten(-1, (5, 16)), rows[..., 80:]
    weight_gradient(g, features, of_weight, of_bias)
    mean = x.mean((2, 3))
    share = torch.bmm(g, weight)[:, :, None, None] / 4
    pairs = (
        (features, mean),
        (logits, torch.baddbmm(bias[:, None], mean, weight.transpose(1, 2))),
        (of_weight[0], torch.bmm(g.transpose(1, 2), mean)),
        (of_bias[0], g.sum(1)),
        (backward(g, weight, x), torch.where(x > 0, share, 0.0)),
    )
    return all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)


def _cut(pixels: int, c: int, classes: int) -> dict[str, int]:
    wide = _power(c)
    tile = max(1, TILE // wide)
    return {"C": c, "BC": wide, "BK": _power(classes), "BP": min(tile, _power(pixels))}


def _power(n: int) -> int:
    """The next power of two, at least 16, the smallest side of a matrix unit's operand."""
    return max(16, 1 << (n - 1).bit_length())
