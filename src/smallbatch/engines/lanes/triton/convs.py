"""The convolutions of K lanes, by the kernels of `conv_kernels` and `image_kernels`.

Activations are (K, m, H, W, C), contiguous; weights (K, size, size, C, O) with any stride between
lanes. Gradients of weights are (parts, K, …); the caller has to add up the parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.triton import conv_kernels, image_kernels

if TYPE_CHECKING:
    from smallbatch.config.study import Precision

# Typed Any, because the kernels' constants are passed as plain numbers.
_ROWS: Any = conv_kernels.rows
_ROWS_WEIGHT: Any = conv_kernels.rows_weight
_TAPS: Any = conv_kernels.taps
_TAPS_BACK: Any = conv_kernels.taps_back
_TAPS_WEIGHT: Any = conv_kernels.taps_weight
_IMAGES: Any = image_kernels.images
_IMAGES_WEIGHT: Any = image_kernels.images_weight

# How float32 is multiplied: "ieee" by the ordinary units; "tf32x3" by the matrix units as three
# TF32 products, with an error within a small factor of float32's; "tf32" as one such product.
# bf16 ignores it.
Dot = Literal["ieee", "tf32x3", "tf32"]

DOTS: dict[Precision, Dot] = {"float32": "tf32x3", "tf32": "tf32", "bf16": "ieee"}
# ‖result − reference‖ / ‖reference‖ above which kernels are taken for broken; rounding is far less.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}

# An activation of a lane with at most so many values is cut into small blocks, which give work to
# more of the GPU's processors.
FEW = 2**14
# A weight gradient is split into at most PARTS sums. Each has at least SHARE pixels for each
# channel, or writing it out would take too long. Matrix units truncate as they accumulate, so a sum
# of more than LONGEST pixels is split further, but into at most MOST parts, which all take memory.
PARTS = 32
SHARE = 8
LONGEST = 2**13
MOST = 64


@dataclass(frozen=True)
class Blocks:
    """The sizes of a kernel's blocks.

    Attributes:
        pixels: Pixels of a block.
        reduced: Most channels (for gradients of weights: input channels) multiplied at a time.
        out: Most output channels of a block.
        warps: Warps of a program.
        stages: Loads that are under way at a time.
        taps: Rows of taps, or taps, of a block of a weight gradient.
    """

    pixels: int
    reduced: int
    out: int
    warps: int
    stages: int
    taps: int = 1


def blocks(kind: str, pixels: int, c: int, o: int) -> Blocks:
    """The blocks of a kernel for ``c`` → ``o`` channels and this number of pixels of a lane.

    These were the fastest of about twenty for ResNet-8's shapes at m = 2, 8 and 128 on an H200.
    """
    few = pixels * max(c, o) <= FEW
    if kind == "rows":
        return Blocks(64, 64, 16, 4 if c > 32 else 2, 3) if few else Blocks(64, 32, 32, 2, 3)
    if kind == "rows back":
        return Blocks(64, 64, 16, 2, 3) if few or o == 16 else Blocks(64, 32, 32, 4, 3)
    if kind == "taps":
        small = Blocks(32, 32, 64, 4, 3) if o > 32 else Blocks(64, 16, 32, 2, 3)
        return small if few else Blocks(128, 32, 64, 4, 3)
    if kind == "taps back":
        return Blocks(64, 64, 32, 4, 3) if few else Blocks(128, 32, 32, 4, 1)
    if kind == "rows weight":
        return Blocks(64, 64, 16, 4, 2) if c > 32 else Blocks(64, 16, 16, 2, 2, 4)
    if kind == "taps weight":
        return Blocks(64, 16, 32, 1, 3)
    if kind == "images":
        return Blocks(64, 32, 16, 2, 1)
    return Blocks(64, 32, 16, 4, 1) if few else Blocks(64, 32, 16, 1, 2)  # images weight


def by_rows(size: int, stride: int, width: int) -> bool:
    """Whether `rows` is used: it pads rows to a power of two, which must not waste too much."""
    return (size, stride) == (3, 1) and width <= 64 and 4 * width >= 3 * _padded(width)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    shortcut: Shortcut | None,
    relu: bool,
    dot: Dot,
) -> Tensor:
    """Relu(conv + bias + shortcut): (K, m, H, W, C) → (K, m, ⌈H/stride⌉, ⌈W/stride⌉, O)."""
    k, m, h, w, c = x.shape
    size, o = weight.shape[1], weight.shape[4]
    oh, ow = -(-h // stride), -(-w // stride)
    y = x.new_empty(k, m, oh, ow, o)
    skip, xs, xh, xw, cx = x, 1, 1, 1, 0
    if shortcut is not None:
        skip, xs, (xh, xw, cx) = shortcut.x, shortcut.stride, shortcut.x.shape[2:]
    shift, shift_lane = (weight, 0) if bias is None else (bias, bias.stride(0))
    ends = {"BIAS": bias is not None, "RELU": relu, "CX": cx, "XH": xh, "XW": xw, "XS": xs}
    by_row = by_rows(size, stride, w)
    b = blocks("rows" if by_row else "taps", m * oh * ow, c, o)
    shape: dict[str, Any] = {"H": h, "W": w, "C": c, "O": o, "DOT": dot, **_cut(b, c, o)}
    if by_row:
        return _rows(x, weight, shift, skip, x, y, shift_lane, b, shape | ends | {"BACK": False})
    _TAPS[_blocks(m * oh * ow, b.pixels), o // shape["BO"], k](
        x, weight, shift, skip, y, m, weight.stride(0), shift_lane,
        SIZE=size, S=stride, BP=b.pixels, **shape, **ends,
        num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    return y


def input_gradient(
    g: Tensor, weight: Tensor, x: Tensor, stride: int, shortcut: Tensor | None, dot: Dot
) -> Tensor:
    """Gradient of ``x`` where x > 0, and 0 elsewhere; ``x`` is the output of a ReLU.

    Args:
        g: The gradient of the output.
        weight: As in the forward pass.
        x: The input.
        stride: The stride of the convolution.
        shortcut: The gradient of the output of the block whose shortcut begins at ``x``, shaped
            as ``g``; None without a shortcut.
        dot: How float32 is multiplied.
    """
    k, m, h, w, c = x.shape
    size, o = weight.shape[1], weight.shape[4]
    of_x, skip = torch.empty_like(x), g if shortcut is None else shortcut
    if by_rows(size, stride, w):
        b = blocks("rows back", m * h * w, o, c)
        shape = {"H": h, "W": w, "C": o, "O": c, "DOT": dot, **_cut(b, o, c)}
        ends = {"BIAS": False, "RELU": False, "XH": 1, "XW": 1, "XS": 1}
        ends |= {"CX": 0 if shortcut is None else o, "BACK": True}
        return _rows(g, weight, weight, skip, x, of_x, 0, b, shape | ends)
    pixels = m * -(-h // stride) * -(-w // stride)
    b = blocks("taps back", pixels, o, c)
    cut = _cut(b, o, c)
    cut = {"BC": cut["BO"], "BO": cut["BC"]}
    _TAPS_BACK[_blocks(pixels, b.pixels) * stride**2, c // cut["BC"], k](
        g, weight, skip, x, of_x, m, weight.stride(0),
        H=h, W=w, C=c, O=o, SIZE=size, S=stride, BP=b.pixels, **cut,
        SHORTCUT=shortcut is not None, DOT=dot, num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    return of_x


def parts_of(pixels: int, channels: int) -> int:
    """The number of parts of a weight gradient over this number of pixels of a lane.

    It depends on the shape of a lane alone, because the split decides the rounding.
    """
    return max(1, min(PARTS, pixels // (SHARE * channels)), min(MOST, _blocks(pixels, LONGEST)))


def weight_gradient(
    g: Tensor, x: Tensor, out: Tensor, of_bias: Tensor | None, stride: int, dot: Dot
) -> None:
    """Write the gradients of weights and biases.

    Args:
        g: The gradient of the output.
        x: The input.
        out: Where the weights' gradient goes, (parts, K, size, size, C, O).
        of_bias: Where the biases' gradient goes, (parts, K, O), with the same strides between parts
            and between lanes; None without biases.
        stride: The stride of the convolution.
        dot: How float32 is multiplied.
    """
    k, m, h, w, c = x.shape
    (parts, _, size), o = out.shape[:3], out.shape[5]
    oh, ow = g.shape[2:4]
    by_row = by_rows(size, stride, w)
    b = blocks("rows weight" if by_row else "taps weight", m * oh * ow, c, o)
    cut = _cut(b, c, o)
    programs = (c // cut["BC"]) * (o // cut["BO"])
    shape = {"H": h, "W": w, "C": c, "O": o, "DOT": dot, "BIAS": of_bias is not None, "T": b.taps}
    kernel, counted = (_ROWS_WEIGHT, m * h) if by_row else (_TAPS_WEIGHT, m * oh * ow)
    if by_row:
        wide = _padded(w)
        pixels = max(b.pixels, wide)
        counted, programs = _blocks(m * h, pixels // wide), programs * _blocks(3, b.taps)
        shape |= {"WP": wide, "BP": pixels}
    else:
        counted, programs = _blocks(m * oh * ow, b.pixels), programs * _blocks(size**2, b.taps)
        shape |= {"SIZE": size, "S": stride, "BP": b.pixels}
    kernel[programs, parts, k](
        g, x, out, out if of_bias is None else of_bias, m, _blocks(counted, parts),
        out.stride(0), out.stride(1), **shape, **cut, num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip


def forward_images(
    images: Tensor, source: Tensor, weight: Tensor, bias: Tensor | None, relu: bool, dot: Dot
) -> Tensor:
    """The first convolution, of stride 1.

    Args:
        images: (S, m, H, W, C), a batch for each seed.
        source: The batch that each lane sees, (K,).
        weight: (K, size, size, C, O).
        bias: (K, O), or None.
        relu: Whether a ReLU follows directly.
        dot: How float32 is multiplied.

    Returns:
        (K, m, H, W, O).
    """
    _, m, h, w, c = images.shape
    k, size, _, _, o = weight.shape
    y = images.new_empty(k, m, h, w, o)
    b = blocks("images", m * h * w, c, o)
    out, reduced = _divisor(o, b.out), min(_padded(size * size * c, 16), b.reduced)
    _IMAGES[_blocks(m * h * w, b.pixels), o // out, k](
        images, source, weight, weight if bias is None else bias, y, m, weight.stride(0),
        0 if bias is None else bias.stride(0),
        H=h, W=w, C=c, O=o, SIZE=size, BP=b.pixels, BR=reduced, BO=out,
        BIAS=bias is not None, RELU=relu, DOT=dot, num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    return y


def weight_gradient_images(
    g: Tensor, images: Tensor, source: Tensor, out: Tensor, of_bias: Tensor | None, dot: Dot
) -> None:
    """Like `weight_gradient`, for the first convolution."""
    _, m, h, w, c = images.shape
    (parts, k, size), o = out.shape[:3], out.shape[5]
    b = blocks("images weight", m * h * w, c, o)
    cut, reduced = _divisor(o, b.out), min(_padded(size * size * c, 16), b.reduced)
    counted = _blocks(m * h * w, b.pixels)
    _IMAGES_WEIGHT[o // cut * _blocks(size * size * c, reduced), parts, k](
        g, images, source, out, out if of_bias is None else of_bias, m, _blocks(counted, parts),
        out.stride(0), out.stride(1), H=h, W=w, C=c, O=o, SIZE=size, BP=b.pixels, BR=reduced,
        BO=cut, BIAS=of_bias is not None, DOT=dot, num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip


def _rows(
    x: Tensor, weight: Tensor, bias: Tensor, shortcut: Tensor, made: Tensor, y: Tensor,
    bias_lane: int, b: Blocks, constants: dict[str, Any],
) -> Tensor:  # fmt: skip
    k, m, h, w = x.shape[:4]
    wide = _padded(w)
    pixels = max(b.pixels, wide)
    _ROWS[_blocks(m * h, pixels // wide), constants["O"] // constants["BO"], k](
        x, weight, bias, shortcut, made, y, m, weight.stride(0), bias_lane,
        WP=wide, BP=pixels, **constants, num_warps=b.warps, num_stages=b.stages,
    )  # fmt: skip
    return y


def _cut(b: Blocks, c: int, o: int) -> dict[str, int]:
    return {"BC": _divisor(c, b.reduced), "BO": _divisor(o, b.out)}


def _divisor(n: int, most: int) -> int:
    """The largest power of two that divides ``n``, at most ``most``."""
    return min(n & -n, most)


def _padded(n: int, least: int = 1) -> int:
    """The next power of two."""
    return max(least, 1 << (n - 1).bit_length())


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def agrees(device: torch.device, precision: Precision) -> bool:
    """Whether these kernels agree with torch on a device, for two small convolutions."""
    dot, dtype = DOTS[precision], torch.bfloat16 if precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def near(found: Tensor, expected: Tensor) -> bool:
        error = (found.double() - expected).norm()
        return bool(error <= TOLERANCE[precision] * expected.norm())  # False for NaN

    for out, stride in ((16, 1), (32, 2)):
        x, weight = noise(1, 3, 6, 6, 16).relu().to(dtype), noise(1, 3, 3, 16, out)
        y = forward(x, weight, None, stride, None, False, dot)
        g, of_weight = noise(*y.shape).to(dtype), torch.empty(1, 1, 3, 3, 16, out, device=device)
        weight_gradient(g, x, of_weight, None, stride, dot)
        of_x = input_gradient(g, weight, x, stride, None, dot)
        plain, kernel, gradient = (
            t.double().permute(*order)
            for t, order in ((x[0], (0, 3, 1, 2)), (weight[0], (3, 2, 0, 1)), (g[0], (0, 3, 1, 2)))
        )
        expected = torch.ops.aten.convolution_backward(
            gradient, plain, kernel, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1,
            [True, True, False],
        )  # fmt: skip
        results = (
            (y[0].permute(0, 3, 1, 2), F.conv2d(plain, kernel, None, stride, 1)),
            (of_x[0].permute(0, 3, 1, 2), expected[0] * (plain > 0)),
            (of_weight[0, 0].permute(3, 2, 0, 1), expected[1]),
        )
        if not all(near(*pair) for pair in results):
            return False
    return True
