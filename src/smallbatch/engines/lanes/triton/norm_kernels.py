"""Triton kernels of batch and ghost norm of K lanes; see :mod:`~engines.lanes.triton.norms`.

To keep precision when the mean is large, sums are taken of differences from one value of the
stretch.
"""

# ruff: noqa: N803, N806 - constants of a kernel are in upper case
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _spread(base, start, end, C, BC, BP):
    """Mean of the pixels ``start`` … ``end``, and the sum of squared differences from it."""
    origin = tl.load(base + start * C, mask=start < end, other=0.0).to(tl.float32)
    sums, squares = tl.zeros((BP, BC), tl.float32), tl.zeros((BP, BC), tl.float32)
    for p0 in range(start, end, BP):
        p = p0 + tl.arange(0, BP)
        there = (p < end)[:, None]
        values = tl.load(base[None, :] + (p * C)[:, None], mask=there, other=0.0).to(tl.float32)
        values = tl.where(there, values - origin[None, :], 0.0)
        sums += values
        squares += values * values
    count = tl.maximum(end - start, 1)
    offset = tl.sum(sums, 0) / count
    return origin + offset, tl.sum(squares, 0) - offset * offset * count


@triton.jit
def _variance(squares, total):
    """The variance for a sum of squared differences from the mean."""
    var = squares / total
    # A sum that overflowed gives infinity, as in torch; tl.maximum would turn NaN into 0.
    return tl.where(var != var, float("inf"), tl.where(var < 0, 0.0, var))


@triton.jit(do_not_specialize=["m", "size", "span"])
def moments(
    x, partial, m, size, span,
    C: tl.constexpr, PIXELS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Writes `_spread` of every stretch: (K, sub-batches, stretches, 2, C)."""
    lane, group = tl.program_id(2).to(tl.int64), tl.program_id(1)
    stretch, c = tl.program_id(0) // (C // BC), tl.program_id(0) % (C // BC) * BC + tl.arange(0, BC)
    total = tl.minimum(size, m - group * size) * PIXELS
    base = x + (lane * m + group * size) * (PIXELS * C) + c
    start = stretch * span
    mean, squares = _spread(base, start, tl.minimum(start + span, total), C, BC, BP)
    stretches = tl.num_programs(0) // (C // BC)
    at = partial + ((lane * tl.num_programs(1) + group) * stretches + stretch) * (2 * C) + c
    tl.store(at, mean)
    tl.store(at + C, squares)


@triton.jit
def _combine(partial, lane, group, groups, m, size, span, stretches, c, C, PIXELS, COUNT):
    """Mean, biased variance and number of values of a sub-batch."""
    j = tl.arange(0, COUNT)
    total = tl.minimum(size, m - group * size) * PIXELS
    count = tl.maximum(tl.minimum(total - j * span, span), 0)
    at = partial + ((lane * groups + group) * stretches + j)[:, None] * (2 * C) + c[None, :]
    there = (count > 0)[:, None]
    means = tl.load(at, mask=there, other=0.0)
    squares = tl.load(at + C, mask=there, other=0.0)
    weight = count.to(tl.float32)[:, None]
    mean = tl.sum(means * weight, 0) / total
    apart = tl.where(there, means - mean[None, :], 0.0)
    return mean, _variance(tl.sum(squares + apart * apart * weight, 0), total), total


@triton.jit(do_not_specialize=["m", "size", "span", "stretches", "per"])
def normalise(
    x, scale, shift, shortcut, partial, kept, running_mean, running_var, y,
    m, size, span, stretches, per, affine_lane, momentum, eps,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
    COUNT: tl.constexpr, TRAINING: tl.constexpr, WHOLE: tl.constexpr,
    CX: tl.constexpr, XH: tl.constexpr, XW: tl.constexpr, XS: tl.constexpr,
):  # fmt: skip
    """Y = relu(norm(x) + shortcut); each program computes ``per`` tiles.

    TRAINING: normalises by the sub-batches, writes their means and 1/std, (2, K, sub-batches, C),
    and moves the running statistics towards their average; otherwise normalises by the running
    statistics. WHOLE: the batch is a single sub-batch that one program reads as a whole, so
    `moments` did not run before.
    """
    PIXELS: tl.constexpr = H * W
    lane, group, groups = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    block, c = tl.program_id(0) // (C // BC), tl.program_id(0) % (C // BC) * BC + tl.arange(0, BC)
    running_mean += lane * C + c
    running_var += lane * C + c
    if TRAINING:
        if WHOLE:
            total = m * PIXELS
            mean, squares = _spread(x + lane * m * (PIXELS * C) + c, 0, total, C, BC, BP)
            var = _variance(squares, total)
        else:
            mean, var, total = _combine(
                partial, lane, group, groups, m, size, span, stretches, c, C, PIXELS, COUNT
            )
        inverse = 1 / tl.sqrt(var + eps)
        if block == 0:
            at = kept + (lane * groups + group) * C + c
            tl.store(at, mean)
            tl.store(at + tl.num_programs(2).to(tl.int64) * groups * C, inverse)
        if (block == 0) & (group == 0):
            if WHOLE:
                average, spread = mean, var * (total / (total - 1))
            else:
                average, spread = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
                for other in range(groups):
                    one, its_var, count = _combine(
                        partial, lane, other, groups, m, size, span, stretches, c, C, PIXELS, COUNT
                    )
                    share = count / (m * PIXELS)
                    average += one * share
                    spread += its_var * (count / (count - 1)) * share
            before = tl.load(running_mean)
            tl.store(running_mean, before + momentum * (average - before))
            before = tl.load(running_var)
            tl.store(running_var, before + momentum * (spread - before))
    else:
        mean, total = tl.load(running_mean), m * PIXELS
        inverse = 1 / tl.sqrt(tl.load(running_var) + eps)
    factor = tl.load(scale + lane * affine_lane + c).to(tl.float32) * inverse
    added = tl.load(shift + lane * affine_lane + c).to(tl.float32)
    first = lane * m + group * size
    for tile in range(block * per, block * per + per):
        p = tile * BP + tl.arange(0, BP)
        there = (p < total)[:, None]
        at = first * (PIXELS * C) + (p * C)[:, None] + c[None, :]
        values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        values = (values - mean[None, :]) * factor[None, :] + added[None, :]
        if CX > 0:
            n, pixel = p // PIXELS, p % PIXELS
            skip = ((n * XH + pixel // W * XS) * XW + pixel % W * XS) * CX
            skip = shortcut + first * (XH * XW * CX) + skip[:, None] + c[None, :]
            values += tl.load(skip, mask=there & (c < CX)[None, :], other=0.0).to(tl.float32)
        values = tl.where(values < 0, 0.0, values)  # unlike tl.maximum keeps NaN
        tl.store(y + at, values.to(y.dtype.element_ty), mask=there)


@triton.jit
def _sums(g, x, mean, first, start, end, c, C, BC, BP):
    """Sums, over ``start`` … ``end``, of gradients and of gradients times deviations."""
    sums, products = tl.zeros((BP, BC), tl.float32), tl.zeros((BP, BC), tl.float32)
    for p0 in range(start, end, BP):
        p = p0 + tl.arange(0, BP)
        there = (p < end)[:, None]
        at = first + (p * C)[:, None] + c[None, :]
        gradients = tl.load(g + at, mask=there, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        sums += gradients
        products += tl.where(there, gradients * (values - mean[None, :]), 0.0)
    return tl.sum(sums, 0), tl.sum(products, 0)


@triton.jit(do_not_specialize=["m", "size", "span"])
def sums_back(
    g, x, kept, partial, m, size, span,
    C: tl.constexpr, PIXELS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Writes `_sums` of every stretch: (K, sub-batches, stretches, 2, C)."""
    lane, group = tl.program_id(2).to(tl.int64), tl.program_id(1)
    stretch, c = tl.program_id(0) // (C // BC), tl.program_id(0) % (C // BC) * BC + tl.arange(0, BC)
    groups = tl.num_programs(1)
    total = tl.minimum(size, m - group * size) * PIXELS
    first = (lane * m + group * size) * (PIXELS * C)
    mean = tl.load(kept + (lane * groups + group) * C + c)
    start = stretch * span
    end = tl.minimum(start + span, total)
    sums, products = _sums(g, x, mean, first, start, end, c, C, BC, BP)
    stretches = tl.num_programs(0) // (C // BC)
    at = partial + ((lane * groups + group) * stretches + stretch) * (2 * C) + c
    tl.store(at, sums)
    tl.store(at + C, products)


@triton.jit
def _totals(partial, inverse, lane, group, groups, stretches, c, C, COUNT):
    """Gradients of shift and scale over one sub-batch."""
    j = tl.arange(0, COUNT)
    at = partial + ((lane * groups + group) * stretches + j)[:, None] * (2 * C) + c[None, :]
    there = (j < stretches)[:, None]
    of_shift = tl.sum(tl.load(at, mask=there, other=0.0), 0)
    of_scale = tl.sum(tl.load(at + C, mask=there, other=0.0), 0)
    return of_shift, of_scale * inverse


@triton.jit(do_not_specialize=["m", "size", "stretches", "per"])
def normalise_back(
    g, x, scale, kept, partial, of_x, of_scale, of_shift,
    m, size, stretches, per, affine_lane, gradient_lane,
    C: tl.constexpr, PIXELS: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, COUNT: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """Gradients of input, scale and shift, from that of the normalised values."""
    lane, group, groups = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    block, c = tl.program_id(0) // (C // BC), tl.program_id(0) % (C // BC) * BC + tl.arange(0, BC)
    inverses = kept + tl.num_programs(2).to(tl.int64) * groups * C
    mean = tl.load(kept + (lane * groups + group) * C + c)
    inverse = tl.load(inverses + (lane * groups + group) * C + c)
    total = tl.minimum(size, m - group * size) * PIXELS
    first = (lane * m + group * size) * (PIXELS * C)
    if WHOLE:
        shifts, factors = _sums(g, x, mean, first, 0, total, c, C, BC, BP)
        factors *= inverse
        tl.store(of_shift + lane * gradient_lane + c, shifts)
        tl.store(of_scale + lane * gradient_lane + c, factors)
    else:
        shifts, factors = _totals(partial, inverse, lane, group, groups, stretches, c, C, COUNT)
    if (block == 0) & (group == 0) & (not WHOLE):
        all_shifts, all_factors = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
        for other in range(groups):
            its = tl.load(inverses + (lane * groups + other) * C + c)
            one, two = _totals(partial, its, lane, other, groups, stretches, c, C, COUNT)
            all_shifts += one
            all_factors += two
        tl.store(of_shift + lane * gradient_lane + c, all_shifts)
        tl.store(of_scale + lane * gradient_lane + c, all_factors)
    factor = tl.load(scale + lane * affine_lane + c).to(tl.float32) * inverse
    constant, slope = shifts / total, factors / total * inverse
    for tile in range(block * per, block * per + per):
        p = tile * BP + tl.arange(0, BP)
        there = (p < total)[:, None]
        at = first + (p * C)[:, None] + c[None, :]
        gradients = tl.load(g + at, mask=there, other=0.0).to(tl.float32)
        values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        result = gradients - constant[None, :] - (values - mean[None, :]) * slope[None, :]
        result *= factor[None, :]
        tl.store(of_x + at, result.to(of_x.dtype.element_ty), mask=there)
