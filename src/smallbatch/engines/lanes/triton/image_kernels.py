"""Triton kernels for the first convolution of K lanes, whose images have few channels.

Taps and channels form one dimension of the matrix products, and lanes of one seed read the same
batch. For the notation see :mod:`~engines.lanes.triton.conv_kernels`.
"""

# ruff: noqa: E741, N803, N806 - constants of a kernel are in upper case, O being output channels
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from smallbatch.engines.lanes.triton.conv_kernels import finish


@triton.jit
def _pixels_of_taps(source, i, oy, ox, r, valid, H, W, C, SIZE):
    """The values (pixels, taps and channels) that the taps read; ``source`` is the lane's batch."""
    iy = oy[:, None] + (r // C // SIZE - SIZE // 2)[None, :]
    ix = ox[:, None] + (r // C % SIZE - SIZE // 2)[None, :]
    inside = valid[:, None] & (r < SIZE * SIZE * C)[None, :]
    inside = inside & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
    at = ((i[:, None] * H + iy) * W + ix) * C + (r % C)[None, :]
    return tl.load(source + at, mask=inside, other=0.0)


@triton.jit(do_not_specialize=["m"])
def images(
    x, source, weight, bias, y, m, weight_lane, bias_lane,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, O: tl.constexpr, SIZE: tl.constexpr,
    BP: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The first convolution.

    ``x`` is (S, m, H, W, C), and ``source`` has for each lane the batch of ``x`` that it sees.
    """
    lane = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    ox, oy, i = p % W, p // W % H, p // (W * H)
    valid = i < m
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    batch = x + tl.load(source + lane) * m * (H * W * C)
    acc = tl.zeros((BP, BO), tl.float32)
    for r0 in range(0, SIZE * SIZE * C, BR):
        r = r0 + tl.arange(0, BR)
        v = _pixels_of_taps(batch, i, oy, ox, r, valid, H, W, C, SIZE)
        at = weight + lane * weight_lane + r[:, None] * O + o[None, :]
        k = tl.load(at, mask=(r < SIZE * SIZE * C)[:, None], other=0.0)
        acc = tl.dot(v, k.to(v.dtype), acc, input_precision=DOT)
    finish(acc, lane, m, i, oy, ox, o, valid, bias, bias_lane, x, y, H, W, O,
            BIAS, RELU, 0, 1, 1, 1)  # fmt: skip


@triton.jit(do_not_specialize=["m", "span"])
def images_weight(
    g, x, source, out, of_bias, m, span, out_part, out_lane,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, O: tl.constexpr, SIZE: tl.constexpr,
    BP: tl.constexpr, BR: tl.constexpr, BO: tl.constexpr, BIAS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Like `rows_weight`, for the first convolution."""
    lane, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    OUTS: tl.constexpr = O // BO
    o = tl.program_id(0) % OUTS * BO + tl.arange(0, BO)
    r = tl.program_id(0) // OUTS * BR + tl.arange(0, BR)
    gradients = g + lane * m * (H * W * O)
    batch = x + tl.load(source + lane) * m * (H * W * C)
    acc = tl.zeros((BR, BO), tl.float32)
    bias = tl.zeros((BO,), tl.float32)
    for block in range(part * span, part * span + span):
        p = block * BP + tl.arange(0, BP)
        ox, oy, i = p % W, p // W % H, p // (W * H)
        valid = i < m
        own = tl.load(gradients + (p * O)[:, None] + o[None, :], mask=valid[:, None], other=0.0)
        v = _pixels_of_taps(batch, i, oy, ox, r, valid, H, W, C, SIZE)
        acc = tl.dot(tl.trans(v), own, acc, input_precision=DOT)
        if BIAS:
            bias += tl.sum(own.to(tl.float32), 0)
    at = out + part.to(tl.int64) * out_part + lane * out_lane
    tl.store(at + r[:, None] * O + o[None, :], acc, mask=(r < SIZE * SIZE * C)[:, None])
    if BIAS and tl.program_id(0) < OUTS:
        tl.store(of_bias + part.to(tl.int64) * out_part + lane * out_lane + o, bias)
