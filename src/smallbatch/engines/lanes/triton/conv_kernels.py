"""Triton kernels for the convolutions of K lanes, as matrix products (implicit GEMM).

Activations are (K, m, H, W, C), and the weights of a lane (size, size, C, O). Both are contiguous,
except that weights may have any stride between lanes, so the channels of a pixel are neighbours in
memory. A program computes one lane, and how it does so depends on the shape of a lane alone, so
that a lane's numbers never depend on the other lanes.

BP, BC and BO are the numbers of pixels, input channels and output channels in a block; BC divides
C, and BO divides O. ``m`` is a run-time value: one compilation serves every batch size.

`rows` and `rows_weight` are for 3×3 convolutions of stride 1. A block consists of whole rows of an
image, each padded to WP places. It loads the rows above, at and below its own, each once instead of
once for every tap, and adds the shifts to the left and right at the end.
"""

# ruff: noqa: E741, N803, N806 - constants of a kernel are in upper case, O being output channels
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def finish(
    acc, lane, m, i, iy, ix, o, valid, bias, bias_lane, shortcut, y, H, W, O,
    BIAS: tl.constexpr, RELU: tl.constexpr, CX: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    XS: tl.constexpr,
):  # fmt: skip
    """Y = relu(acc + bias + shortcut).

    The shortcut has CX channels (0: there is none), taken from pixels that are XS apart.
    """
    if BIAS:
        acc += tl.load(bias + lane * bias_lane + o).to(tl.float32)[None, :]
    if CX > 0:
        at = ((i * XH + iy * XS) * XW + ix * XS) * CX
        skip = shortcut + lane * m * (XH * XW * CX) + at[:, None] + o[None, :]
        there = valid[:, None] & (o < CX)[None, :]
        acc += tl.load(skip, mask=there, other=0.0).to(tl.float32)
    if RELU:
        # Not tl.maximum, which would turn a NaN into 0.
        acc = tl.where(acc < 0, 0.0, acc)
    at = ((i * H + iy) * W + ix) * O
    out = y + lane * m * (H * W * O) + at[:, None] + o[None, :]
    tl.store(out, acc.to(y.dtype.element_ty), mask=valid[:, None])


@triton.jit
def _finish_back(
    acc, lane, m, i, iy, ix, c, valid, shortcut, x, of_x, H, W, C, OH, OW, O, S,
    SHORTCUT: tl.constexpr,
):  # fmt: skip
    """Gradient of the input, which is the output of a ReLU: acc where x > 0, else 0.

    SHORTCUT: the gradient of a shortcut that begins at this input is added to acc first.
    """
    if SHORTCUT:
        begins = valid & (iy % S == 0) & (ix % S == 0)
        at = ((i * OH + iy // S) * OW + ix // S) * O
        skip = shortcut + lane * m * (OH * OW * O) + at[:, None] + c[None, :]
        acc += tl.load(skip, mask=begins[:, None], other=0.0).to(tl.float32)
    at = lane * m * (H * W * C) + (((i * H + iy) * W + ix) * C)[:, None] + c[None, :]
    made = tl.load(x + at, mask=valid[:, None], other=0.0)
    acc = tl.where(made <= 0, 0.0, acc)
    tl.store(of_x + at, acc.to(of_x.dtype.element_ty), mask=valid[:, None])


@triton.jit(do_not_specialize=["m"])
def rows(
    x, weight, bias, shortcut, made, y, m, weight_lane, bias_lane,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, O: tl.constexpr, WP: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, BACK: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, CX: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    XS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A 3×3 convolution of stride 1, C → O channels, or with BACK the gradient of its input.

    BACK: ``x`` is the gradient of the output, with C channels, ``y`` that of the input, with O
    channels, and ``weight`` is (3, 3, O, C).
    """
    lane = tl.program_id(2).to(tl.int64)
    q = tl.arange(0, BP)
    row = tl.program_id(0) * (BP // WP) + q // WP
    ix = q % WP
    i, iy = row // H, row % H
    valid = (i < m) & (ix < W)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    c = tl.arange(0, BC)
    images = x + lane * m * (H * W * C)
    kernel = weight + lane * weight_lane
    left = tl.zeros((BP, BO), tl.float32)
    middle = tl.zeros((BP, BO), tl.float32)
    right = tl.zeros((BP, BO), tl.float32)
    BLOCKS: tl.constexpr = C // BC
    for step in range(3 * BLOCKS):
        ty, c0 = step // BLOCKS, step % BLOCKS * BC
        above = iy + ty - 1
        inside = valid & (above >= 0) & (above < H)
        at = ((row + ty - 1) * W + ix) * C + c0
        v = tl.load(images + at[:, None] + c[None, :], mask=inside[:, None], other=0.0)
        if BACK:
            taps = kernel + (2 - ty) * (3 * C * O) + (c0 + c)[:, None] + o[None, :] * C
            first, last = 2 * C * O, 0
        else:
            taps = kernel + ty * (3 * C * O) + (c0 + c)[:, None] * O + o[None, :]
            first, last = 0, 2 * C * O
        left = tl.dot(v, tl.load(taps + first).to(v.dtype), left, input_precision=DOT)
        middle = tl.dot(v, tl.load(taps + C * O).to(v.dtype), middle, input_precision=DOT)
        right = tl.dot(v, tl.load(taps + last).to(v.dtype), right, input_precision=DOT)
    # What the left taps contribute is needed one pixel to the right, and vice versa.
    before = tl.broadcast_to(tl.where(q > 0, q - 1, 0)[:, None], (BP, BO))
    after = tl.broadcast_to(tl.where(q < BP - 1, q + 1, 0)[:, None], (BP, BO))
    middle += tl.where((ix > 0)[:, None], tl.gather(left, before, 0), 0.0)
    middle += tl.where((ix + 1 < W)[:, None], tl.gather(right, after, 0), 0.0)
    if BACK:
        _finish_back(middle, lane, m, i, iy, ix, o, valid, shortcut, made, y, H, W, O, H, W, C, 1,
                     CX > 0)  # fmt: skip
    else:
        finish(middle, lane, m, i, iy, ix, o, valid, bias, bias_lane, shortcut, y, H, W, O,
                BIAS, RELU, CX, XH, XW, XS)  # fmt: skip


@triton.jit(do_not_specialize=["m"])
def taps(
    x, weight, bias, shortcut, y, m, weight_lane, bias_lane,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, O: tl.constexpr,
    SIZE: tl.constexpr, S: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    BIAS: tl.constexpr, RELU: tl.constexpr, CX: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr,
    XS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """A convolution of any size and stride S, one tap after another."""
    OH: tl.constexpr = (H + S - 1) // S
    OW: tl.constexpr = (W + S - 1) // S
    lane = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    ox, oy, i = p % OW, p // OW % OH, p // (OW * OH)
    valid = i < m
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    c = tl.arange(0, BC)
    images = x + lane * m * (H * W * C)
    kernel = weight + lane * weight_lane
    acc = tl.zeros((BP, BO), tl.float32)
    BLOCKS: tl.constexpr = C // BC
    for step in range(SIZE * SIZE * BLOCKS):
        tap, c0 = step // BLOCKS, step % BLOCKS * BC
        iy = oy * S + tap // SIZE - SIZE // 2
        ix = ox * S + tap % SIZE - SIZE // 2
        inside = valid & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        at = ((i * H + iy) * W + ix) * C + c0
        v = tl.load(images + at[:, None] + c[None, :], mask=inside[:, None], other=0.0)
        k = tl.load(kernel + (tap * C + c0 + c)[:, None] * O + o[None, :])
        acc = tl.dot(v, k.to(v.dtype), acc, input_precision=DOT)
    finish(acc, lane, m, i, oy, ox, o, valid, bias, bias_lane, shortcut, y, OH, OW, O,
            BIAS, RELU, CX, XH, XW, XS)  # fmt: skip


@triton.jit(do_not_specialize=["m"])
def taps_back(
    g, weight, shortcut, x, of_x, m, weight_lane,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, O: tl.constexpr,
    SIZE: tl.constexpr, S: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    SHORTCUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradient of the input of `taps`.

    A block holds pixels of one residue (iy mod S, ix mod S), because they are reached by the same
    taps.
    """
    OH: tl.constexpr = (H + S - 1) // S
    OW: tl.constexpr = (W + S - 1) // S
    lane = tl.program_id(2).to(tl.int64)
    residue = tl.program_id(0) % (S * S)
    py, px = residue // S, residue % S
    p = tl.program_id(0) // (S * S) * BP + tl.arange(0, BP)
    ix, iy, i = p % OW * S + px, p // OW % OH * S + py, p // (OW * OH)
    valid = (i < m) & (iy < H) & (ix < W)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    o = tl.arange(0, BO)
    gradients = g + lane * m * (OH * OW * O)
    kernel = weight + lane * weight_lane
    first_y, first_x = (py + SIZE // 2) % S, (px + SIZE // 2) % S
    down, across = (SIZE - first_y + S - 1) // S, (SIZE - first_x + S - 1) // S
    BLOCKS: tl.constexpr = O // BO
    acc = tl.zeros((BP, BC), tl.float32)
    for step in range(down * across * BLOCKS):
        tap, o0 = step // BLOCKS, step % BLOCKS * BO
        ty, tx = first_y + tap // across * S, first_x + tap % across * S
        oy, ox = (iy + SIZE // 2 - ty) // S, (ix + SIZE // 2 - tx) // S
        inside = valid & (iy + SIZE // 2 >= ty) & (oy < OH) & (ix + SIZE // 2 >= tx) & (ox < OW)
        at = ((i * OH + oy) * OW + ox) * O + o0
        v = tl.load(gradients + at[:, None] + o[None, :], mask=inside[:, None], other=0.0)
        k = tl.load(kernel + ((ty * SIZE + tx) * C + c)[None, :] * O + (o0 + o)[:, None])
        acc = tl.dot(v, k.to(v.dtype), acc, input_precision=DOT)
    _finish_back(acc, lane, m, i, iy, ix, c, valid, shortcut, x, of_x, H, W, C, OH, OW, O, S,
                 SHORTCUT)  # fmt: skip


@triton.jit(do_not_specialize=["m", "span"])
def rows_weight(
    g, x, out, of_bias, m, span, out_part, out_lane,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, O: tl.constexpr, WP: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, T: tl.constexpr,
    BIAS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradients of the weights and, with BIAS, biases of a 3×3 convolution of stride 1.

    A program computes one part of the gradient, the sum over ``span`` blocks of pixels, for T rows
    of taps: 1, or all 3 padded to 4.
    """
    PER: tl.constexpr = BP // WP
    lane, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    OUTS: tl.constexpr = O // BO
    CHUNKS: tl.constexpr = C // BC
    o = tl.program_id(0) % OUTS * BO + tl.arange(0, BO)
    c0 = tl.program_id(0) // OUTS % CHUNKS * BC
    ty = tl.program_id(0) // (OUTS * CHUNKS) * T + tl.arange(0, T)
    c = c0 + tl.arange(0, BC)
    q = tl.arange(0, BP)
    ix = q % WP
    gradients = g + lane * m * (H * W * O)
    images = x + lane * m * (H * W * C)
    left = tl.zeros((T * BC, BO), tl.float32)
    middle = tl.zeros((T * BC, BO), tl.float32)
    right = tl.zeros((T * BC, BO), tl.float32)
    bias = tl.zeros((BO,), tl.float32)
    for block in range(part * span, part * span + span):
        row = block * PER + q // WP
        iy = row % H
        valid = (row < m * H) & (ix < W)
        above = iy[:, None] + ty[None, :] - 1
        inside = valid[:, None] & (ty < 3)[None, :] & (above >= 0) & (above < H)
        at = ((row[:, None] + ty[None, :] - 1) * W + ix[:, None]) * C
        v = tl.load(images + at[:, :, None] + c[None, None, :], mask=inside[:, :, None], other=0.0)
        v = tl.trans(tl.reshape(v, (BP, T * BC)))
        # The left tap reads a pixel for the output on its right, so it needs the gradient there.
        to = gradients + ((row * W + ix) * O)[:, None] + o[None, :]
        here = (row < m * H) & (ix + 1 < W)
        left = tl.dot(v, tl.load(to + O, mask=here[:, None], other=0.0), left, input_precision=DOT)
        own = tl.load(to, mask=valid[:, None], other=0.0)
        middle = tl.dot(v, own, middle, input_precision=DOT)
        here = valid & (ix > 0)
        own = own.to(tl.float32)
        right = tl.dot(
            v, tl.load(to - O, mask=here[:, None], other=0.0), right, input_precision=DOT
        )
        if BIAS:
            bias += tl.sum(own, 0)
    at = out + part.to(tl.int64) * out_part + lane * out_lane
    rows = tl.reshape((ty[:, None] * (3 * C) + c[None, :]) * O, (T * BC,))
    there = tl.reshape((ty[:, None] < 3) & (c[None, :] >= 0), (T * BC,))
    at += rows[:, None] + o[None, :]
    tl.store(at, left, mask=there[:, None])
    tl.store(at + C * O, middle, mask=there[:, None])
    tl.store(at + 2 * C * O, right, mask=there[:, None])
    if BIAS and tl.program_id(0) < OUTS:
        tl.store(of_bias + part.to(tl.int64) * out_part + lane * out_lane + o, bias)


@triton.jit(do_not_specialize=["m", "span"])
def taps_weight(
    g, x, out, of_bias, m, span, out_part, out_lane,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, O: tl.constexpr,
    SIZE: tl.constexpr, S: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    T: tl.constexpr, BIAS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Like `rows_weight`, for any size and stride, and T taps at a time."""
    OH: tl.constexpr = (H + S - 1) // S
    OW: tl.constexpr = (W + S - 1) // S
    OUTS: tl.constexpr = O // BO
    CHUNKS: tl.constexpr = C // BC
    lane, part = tl.program_id(2).to(tl.int64), tl.program_id(1)
    o = tl.program_id(0) % OUTS * BO + tl.arange(0, BO)
    c = tl.program_id(0) // OUTS % CHUNKS * BC + tl.arange(0, BC)
    tap = tl.program_id(0) // (OUTS * CHUNKS) * T + tl.arange(0, T)
    dy, dx = tap // SIZE - SIZE // 2, tap % SIZE - SIZE // 2
    gradients = g + lane * m * (OH * OW * O)
    images = x + lane * m * (H * W * C)
    acc = tl.zeros((T * BC, BO), tl.float32)
    bias = tl.zeros((BO,), tl.float32)
    for block in range(part * span, part * span + span):
        p = block * BP + tl.arange(0, BP)
        ox, oy, i = p % OW, p // OW % OH, p // (OW * OH)
        valid = i < m
        own = tl.load(gradients + (p * O)[:, None] + o[None, :], mask=valid[:, None], other=0.0)
        iy, ix = oy[:, None] * S + dy[None, :], ox[:, None] * S + dx[None, :]
        inside = valid[:, None] & (tap < SIZE * SIZE)[None, :]
        inside = inside & (iy >= 0) & (iy < H) & (ix >= 0) & (ix < W)
        at = ((i[:, None] * H + iy) * W + ix) * C
        v = tl.load(images + at[:, :, None] + c[None, None, :], mask=inside[:, :, None], other=0.0)
        v = tl.trans(tl.reshape(v, (BP, T * BC)))
        acc = tl.dot(v, own, acc, input_precision=DOT)
        if BIAS:
            bias += tl.sum(own.to(tl.float32), 0)
    at = out + part.to(tl.int64) * out_part + lane * out_lane
    rows = tl.reshape((tap[:, None] * C + c[None, :]) * O, (T * BC,))
    there = tl.reshape((tap[:, None] < SIZE * SIZE) & (c[None, :] >= 0), (T * BC,))
    tl.store(at + rows[:, None] + o[None, :], acc, mask=there[:, None])
    if BIAS and tl.program_id(0) < OUTS:
        tl.store(of_bias + part.to(tl.int64) * out_part + lane * out_lane + o, bias)
