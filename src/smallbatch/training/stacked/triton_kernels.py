"""Triton kernels for the convolutions of K lanes: implicit GEMM, one lane a slice of the grid.

Tensors are contiguous: activations (m, K·C, H, W), weights of a lane (Cout, C, SIZE, SIZE) with any
stride between lanes. The pixels of all m examples of a lane are one dimension of its products.
Block shapes depend on a lane's own shape alone, so its numbers do not depend on its neighbours.

BC, BO and BP are the blocks of input channels, output channels and pixels. Parameters in lower case
are run-time values: one compilation serves every m, K and image size.
"""

# ruff: noqa: E741, N803 - constants of a kernel are in upper case, O being output channels
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["m", "lanes"])
def convolve(
    x, weight, bias, shortcut, source, y,
    m, lanes, h, w, oh, ow, xh, xw, weight_lane, bias_lane, x_source, x_example,
    C: tl.constexpr, O: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    BC: tl.constexpr, BO: tl.constexpr, BP: tl.constexpr, FLAT: tl.constexpr,
    SOURCE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    CX: tl.constexpr, XSTRIDE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Y = relu(conv(x) + bias + shortcut); CX channels of shortcut, 0 for none.

    FLAT: the reduction runs over (channel, tap) at once, for inputs of few channels.
    SOURCE: lanes share inputs, which ``source`` names for each lane.
    """
    lane = tl.program_id(2)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    pixel = p % (oh * ow)
    n, oy, ox = p // (oh * ow), pixel // ow, pixel % ow
    valid = n < m
    origin = tl.load(source + lane) if SOURCE else lane
    base = x + origin * x_source + n.to(tl.int64) * x_example
    kernel = weight + lane.to(tl.int64) * weight_lane + o[:, None] * (C * SIZE * SIZE)
    acc = tl.zeros((BO, BP), tl.float32)
    if FLAT:
        for r0 in range(0, C * SIZE * SIZE, BC):
            r = r0 + tl.arange(0, BC)
            tap = r % (SIZE * SIZE)
            iy = (oy * STRIDE - SIZE // 2)[None, :] + (tap // SIZE)[:, None]
            ix = (ox * STRIDE - SIZE // 2)[None, :] + (tap % SIZE)[:, None]
            there = r < C * SIZE * SIZE
            inside = (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w) & valid[None, :] & there[:, None]
            offsets = (r // (SIZE * SIZE))[:, None] * (h * w) + iy * w + ix
            values = tl.load(base[None, :] + offsets, mask=inside, other=0.0)
            wanted = (o < O)[:, None] & there[None, :]
            weights = tl.load(kernel + r[None, :], mask=wanted, other=0.0)
            acc = tl.dot(weights, values, acc, input_precision=DOT)
    else:
        for tap in range(SIZE * SIZE):
            iy = oy * STRIDE + tap // SIZE - SIZE // 2
            ix = ox * STRIDE + tap % SIZE - SIZE // 2
            inside = valid & (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w)
            at = base + iy * w + ix
            for c0 in range(0, C, BC):
                c = c0 + tl.arange(0, BC)
                mask = inside[None, :] & (c < C)[:, None]
                values = tl.load(at[None, :] + c[:, None] * (h * w), mask=mask, other=0.0)
                wanted = (o < O)[:, None] & (c < C)[None, :]
                weights = tl.load(kernel + c[None, :] * (SIZE * SIZE) + tap, mask=wanted, other=0.0)
                acc = tl.dot(weights, values, acc, input_precision=DOT)
    if BIAS:
        shift = tl.load(bias + lane * bias_lane + o, mask=o < O, other=0.0)
        acc += shift.to(tl.float32)[:, None]
    if CX > 0:
        skip = shortcut + (n.to(tl.int64) * lanes + lane) * (CX * xh * xw)
        skip += oy * XSTRIDE * xw + ox * XSTRIDE
        mask = valid[None, :] & (o < CX)[:, None]
        acc += tl.load(skip[None, :] + o[:, None] * (xh * xw), mask=mask, other=0.0).to(tl.float32)
    if RELU:
        # Not tl.maximum, which would turn a NaN into 0.
        acc = tl.where(acc < 0, 0.0, acc)
    out = y + (n.to(tl.int64) * lanes + lane) * (O * oh * ow) + pixel
    mask = valid[None, :] & (o < O)[:, None]
    tl.store(out[None, :] + o[:, None] * (oh * ow), acc.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m", "lanes"])
def convolve_back(
    g, weight, x, shortcut, of_x,
    m, lanes, h, w, oh, ow, weight_lane,
    C: tl.constexpr, O: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    BC: tl.constexpr, BO: tl.constexpr, BP: tl.constexpr,
    SHORTCUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Gradient of the input where x > 0; SHORTCUT: plus that of a shortcut which begins there.

    With a stride, pixels of one residue (iy mod STRIDE, ix mod STRIDE) are computed together: they
    meet the same taps.
    """
    lane = tl.program_id(2)
    residue = tl.program_id(0) % (STRIDE * STRIDE)
    py, px = residue // STRIDE, residue % STRIDE
    hs, ws = (h + STRIDE - 1) // STRIDE, (w + STRIDE - 1) // STRIDE
    p = tl.program_id(0) // (STRIDE * STRIDE) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    pixel = p % (hs * ws)
    n, iy, ix = p // (hs * ws), pixel // ws * STRIDE + py, pixel % ws * STRIDE + px
    valid = (n < m) & (iy < h) & (ix < w)
    block = n.to(tl.int64) * lanes + lane
    base = g + block * (O * oh * ow)
    kernel = weight + lane.to(tl.int64) * weight_lane + c[:, None] * (SIZE * SIZE)
    acc = tl.zeros((BC, BP), tl.float32)
    first_y, first_x = (py + SIZE // 2) % STRIDE, (px + SIZE // 2) % STRIDE
    for ty in range(first_y, SIZE, STRIDE):
        oy = (iy + SIZE // 2 - ty) // STRIDE
        row = valid & (iy + SIZE // 2 >= ty) & (oy < oh)
        for tx in range(first_x, SIZE, STRIDE):
            ox = (ix + SIZE // 2 - tx) // STRIDE
            inside = row & (ix + SIZE // 2 >= tx) & (ox < ow)
            at = base + oy * ow + ox
            for o0 in range(0, O, BO):
                o = o0 + tl.arange(0, BO)
                mask = inside[None, :] & (o < O)[:, None]
                values = tl.load(at[None, :] + o[:, None] * (oh * ow), mask=mask, other=0.0)
                wanted = (c < C)[:, None] & (o < O)[None, :]
                taps = kernel + o[None, :] * (C * SIZE * SIZE) + ty * SIZE + tx
                weights = tl.load(taps, mask=wanted, other=0.0)
                acc = tl.dot(weights, values, acc, input_precision=DOT)
    mask = valid[None, :] & (c < C)[:, None]
    if SHORTCUT:
        begins = mask & ((iy % STRIDE == 0) & (ix % STRIDE == 0))[None, :]
        skip = shortcut + block * (O * oh * ow) + iy // STRIDE * ow + ix // STRIDE
        values = tl.load(skip[None, :] + c[:, None] * (oh * ow), mask=begins, other=0.0)
        acc += values.to(tl.float32)
    offsets = (block * (C * h * w) + iy * w + ix)[None, :] + c[:, None] * (h * w)
    made = tl.load(x + offsets, mask=mask, other=0.0)
    acc = tl.where(made <= 0, 0.0, acc)
    tl.store(of_x + offsets, acc.to(of_x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m", "lanes"])
def correlate(
    g, x, source, out,
    m, lanes, h, w, oh, ow, span, out_part, out_lane, x_source, x_example,
    C: tl.constexpr, O: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    BC: tl.constexpr, BO: tl.constexpr, BP: tl.constexpr, FLAT: tl.constexpr,
    SOURCE: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """The weights' gradient, each part of it over ``span`` pixels; the parts are to be summed.

    Programs next to each other read the same pixels for other taps, out of the cache.
    """
    lane, part = tl.program_id(2), tl.program_id(1)
    outs: tl.constexpr = (O + BO - 1) // BO
    o = tl.program_id(0) % outs * BO + tl.arange(0, BO)
    block = tl.program_id(0) // outs
    if FLAT:
        r = block * BC + tl.arange(0, BC)
        there = r < C * SIZE * SIZE
        c, tap = r // (SIZE * SIZE), r % (SIZE * SIZE)
        ty, tx = tap // SIZE, tap % SIZE
        column = r
    else:
        chunks: tl.constexpr = (C + BC - 1) // BC
        c = block % chunks * BC + tl.arange(0, BC)
        there = c < C
        ty = tl.zeros((BC,), tl.int32) + block // chunks // SIZE
        tx = tl.zeros((BC,), tl.int32) + block // chunks % SIZE
        column = c * (SIZE * SIZE) + ty * SIZE + tx
    origin = tl.load(source + lane) if SOURCE else lane
    acc = tl.zeros((BO, BC), tl.float32)
    for p0 in range(part * span, part * span + span, BP):
        p = p0 + tl.arange(0, BP)
        pixel = p % (oh * ow)
        n, oy, ox = p // (oh * ow), pixel // ow, pixel % ow
        valid = n < m
        at = g + (n.to(tl.int64) * lanes + lane) * (O * oh * ow) + pixel
        mask = valid[None, :] & (o < O)[:, None]
        gradients = tl.load(at[None, :] + o[:, None] * (oh * ow), mask=mask, other=0.0)
        iy = (oy * STRIDE - SIZE // 2)[None, :] + ty[:, None]
        ix = (ox * STRIDE - SIZE // 2)[None, :] + tx[:, None]
        inside = (iy >= 0) & (iy < h) & (ix >= 0) & (ix < w) & valid[None, :] & there[:, None]
        pixels = x + origin * x_source + n.to(tl.int64) * x_example
        offsets = c[:, None] * (h * w) + iy * w + ix
        values = tl.load(pixels[None, :] + offsets, mask=inside, other=0.0)
        acc = tl.dot(gradients, tl.trans(values), acc, input_precision=DOT)
    at = out + part * out_part + lane.to(tl.int64) * out_lane
    offsets = o[:, None] * (C * SIZE * SIZE) + column[None, :]
    tl.store(at + offsets, acc.to(out.dtype.element_ty), mask=(o < O)[:, None] & there[None, :])
