"""The convolutions' kernels against torch's plain convolution with autograd, lane by lane."""

from __future__ import annotations

import mmap
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.triton import convs
from tests.engines.lanes.triton.tensors import DEVICE, GAP, channels_first, in_rows, near, noise

K = 2
DOTS: list[Any] = ["ieee", "tf32x3"] if DEVICE.type == "cuda" else ["ieee"]
ROWS, TAPS, DOWN = (3, 16, 16, 3, 1, 4, 6), (2, 16, 16, 3, 1, 3, 5), (1, 16, 32, 3, 2, 5, 7)
CASES = [  # examples, channels in and out, size, stride, height, width: as few as tell
    pytest.param(*ROWS, id="rows"),
    pytest.param(*TAPS, id="taps for width 5"),
    pytest.param(*DOWN, id="down, odd"),
    pytest.param(2, 16, 32, 3, 2, 4, 6, id="down, even"),
    pytest.param(1, 64, 32, 3, 1, 1, 2, id="rows 64"),
    pytest.param(1, 48, 96, 3, 1, 1, 3, id="rows 48 to 96", marks=pytest.mark.slow),
    pytest.param(5, 16, 16, 3, 1, 5, 1, id="rows of one pixel"),
    pytest.param(1, 16, 16, 3, 1, 1, 66, id="taps for wide rows"),
    pytest.param(1, 48, 32, 3, 2, 1, 2, id="down, 48 to 32"),
    pytest.param(1, 16, 32, 3, 2, 1, 1, id="down, one pixel"),
    pytest.param(1, 16, 16, 5, 1, 2, 3, id="5x5"),
    pytest.param(3, 16, 32, 1, 2, 5, 4, id="1x1, down"),
]


class Oracle:
    """One convolution of all lanes in float64, by autograd; tensors channels last."""

    def __init__(self, x: Tensor, weight: Tensor, stride: int) -> None:
        """``x`` (K, m, H, W, C), ``weight`` (K, size, size, C, O)."""
        self.x = channels_first(x).double().requires_grad_()
        self.weight = weight.permute(0, 4, 3, 1, 2).double().detach().requires_grad_()
        pairs = zip(self.x, self.weight, strict=True)
        padding = weight.shape[1] // 2
        y = torch.stack([F.conv2d(a, b, None, stride, padding) for a, b in pairs])
        self._y = y.movedim(2, -1)
        self.y = self._y.detach()

    def gradients(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Of input and weight, shaped as the arguments were."""
        self._y.backward(g.double())
        assert self.x.grad is not None
        assert self.weight.grad is not None
        return self.x.grad.movedim(2, -1), self.weight.grad.permute(0, 3, 4, 2, 1)


def weights(size: int, c: int, o: int) -> Tensor:
    rows, weight = in_rows(K, shape=(size, size, c, o))
    weight.copy_(noise(*weight.shape, seed=3))
    assert rows[:, :16].eq(GAP).all()
    return weight


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize(("m", "c", "o", "size", "stride", "h", "w"), CASES)
def test_every_pass_is_torchs(
    m: int, c: int, o: int, size: int, stride: int, h: int, w: int, dot: Any
) -> None:
    x, weight = noise(K, m, h, w, c).relu(), weights(size, c, o)
    oracle = Oracle(x, weight, stride)
    y = convs.forward(x, weight, None, stride, None, False, dot)
    near(y, oracle.y)
    g = noise(*y.shape, seed=1)
    of_x, of_weight = oracle.gradients(g)
    near(convs.input_gradient(g, weight, x, stride, None, dot), of_x * (x > 0))
    rows, out = in_rows(1, K, shape=tuple(weight.shape[1:]))
    convs.weight_gradient(g, x, out, None, stride, dot)
    near(out[0], of_weight)
    assert rows[..., :16].eq(GAP).all()
    assert rows[..., -32:].eq(GAP).all()


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize(("m", "c", "o", "size", "stride", "h", "w"), [ROWS, TAPS, DOWN])
def test_the_blocks_for_many_pixels_give_the_same(
    monkeypatch: pytest.MonkeyPatch,
    m: int, c: int, o: int, size: int, stride: int, h: int, w: int, dot: Any,
) -> None:  # fmt: skip
    kinds = ("rows", "rows back", "taps", "taps back", "taps weight", "images weight")
    before = [convs.blocks(kind, 99, c, o) for kind in kinds]
    monkeypatch.setattr(convs, "FEW", 0)
    assert [convs.blocks(kind, 99, c, o) for kind in kinds] != before
    test_every_pass_is_torchs(m, c, o, size, stride, h, w, dot)


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(("m", "c", "o", "size", "stride", "h", "w"), [ROWS, DOWN])
def test_bias_shortcut_and_relu_join_the_output(
    m: int, c: int, o: int, size: int, stride: int, h: int, w: int, relu: bool, dot: Any
) -> None:
    x, weight = noise(K, m, h, w, c).relu(), weights(size, c, o)
    _, bias = in_rows(K, shape=(o,))
    bias.copy_(noise(K, o, seed=4))
    oh, ow = -(-h // stride), -(-w // stride)
    # Of fewer channels than the output has, from an input twice as large, once odd and once even.
    skip = noise(K, m, 2 * oh - 1, 2 * ow, c // 2, seed=5)
    y = convs.forward(x, weight, bias, stride, Shortcut(skip, 2), relu, dot)
    expected = Oracle(x, weight, stride).y + bias[:, None, None, None]
    expected = expected + F.pad(skip[:, :, ::2, ::2], (0, o - c // 2))
    near(y, expected.relu() if relu else expected)
    same = noise(K, m, oh, ow, o, seed=6)
    y = convs.forward(x, weight, None, stride, Shortcut(same, 1), relu, dot)
    expected = Oracle(x, weight, stride).y + same
    near(y, expected.relu() if relu else expected)


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize(("m", "c", "o", "size", "stride", "h", "w"), [ROWS, TAPS, DOWN])
def test_the_gradient_of_a_shortcut_joins_the_inputs(
    m: int, c: int, o: int, size: int, stride: int, h: int, w: int, dot: Any
) -> None:
    x, weight = noise(K, m, h, w, c).relu(), weights(size, c, o)
    oracle = Oracle(x, weight, stride)
    g, end = noise(*oracle.y.shape, seed=1), noise(*oracle.y.shape, seed=2)
    of_x, _ = oracle.gradients(g)
    of_x[:, :, ::stride, ::stride] += end[..., :c]
    near(convs.input_gradient(g, weight, x, stride, end, dot), of_x * (x > 0))


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(("size", "stride", "h", "w"), [ROWS[3:], TAPS[3:], DOWN[3:]])
def test_the_parts_of_a_weight_gradient_add_up(
    size: int, stride: int, h: int, w: int, parts: int
) -> None:
    """Also more parts than there are blocks: the last ones are 0."""
    m, c, o = 6, 16, 16
    x, weight = noise(K, m, h, w, c).relu(), weights(size, c, o)
    oracle = Oracle(x, weight, stride)
    g = noise(*oracle.y.shape, seed=1)
    _, of_weight = oracle.gradients(g)
    rows, both = in_rows(parts, K, shape=(size * size * c * o + o,))
    out = both[..., :-o].unflatten(-1, (size, size, c, o))
    convs.weight_gradient(g, x, out, both[..., -o:], stride, "ieee")
    near(out.sum(0), of_weight)
    near(both[..., -o:].sum(0), g.sum((1, 2, 3)))
    assert out[1].any()
    assert not out[3:].any()
    assert rows[..., :16].eq(GAP).all()
    assert rows[..., -32:].eq(GAP).all()


IMAGES = [  # channels in and out, size, height, width
    pytest.param(3, 16, 3, 4, 6, id="RGB"),
    pytest.param(1, 16, 3, 5, 5, id="grey"),
    pytest.param(3, 16, 5, 4, 3, id="5x5"),
]


@pytest.mark.parametrize("dot", DOTS)
@pytest.mark.parametrize(("biased", "relu"), [(True, True), (False, False)])
@pytest.mark.parametrize(("c", "o", "size", "h", "w"), IMAGES)
def test_the_first_convolution_reads_each_lanes_images(
    c: int, o: int, size: int, h: int, w: int, biased: bool, relu: bool, dot: Any
) -> None:
    images, source = noise(3, 3, h, w, c), torch.tensor([2, 0], device=DEVICE)
    weight, bias = weights(size, c, o), noise(K, o, seed=4) if biased else None
    oracle = Oracle(images[source], weight, 1)
    expected = oracle.y if bias is None else oracle.y + bias[:, None, None, None]
    y = convs.forward_images(images, source, weight, bias, relu, dot)
    near(y, expected.relu() if relu else expected)
    g = noise(*y.shape, seed=1)
    _, of_weight = oracle.gradients(g)
    for parts in (1, 2):
        rows, both = in_rows(parts, K, shape=(size * size * c * o + o,))
        out, of_bias = both[..., :-o].unflatten(-1, (size, size, c, o)), both[..., -o:]
        convs.weight_gradient_images(g, images, source, out, of_bias if biased else None, dot)
        near(out.sum(0), of_weight)
        if biased:
            near(of_bias.sum(0), g.sum((1, 2, 3)))
        else:
            assert of_bias.eq(GAP).all()
        assert rows[..., :16].eq(GAP).all()
        assert rows[..., -32:].eq(GAP).all()


def test_rows_serve_where_padding_them_wastes_little() -> None:
    widths = [w for w in range(1, 70) if convs.by_rows(3, 1, w)]
    # Three quarters of a power of two at least.
    expected = [1, 2, 3, 4, 6, 7, 8, *range(12, 17), *range(24, 33), *range(48, 65)]
    assert widths == expected
    assert not convs.by_rows(3, 2, 8)
    assert not convs.by_rows(5, 1, 8)
    assert not convs.by_rows(1, 1, 8)


def test_a_weight_gradient_has_parts_where_there_are_pixels_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convs, "SHARE", 8)
    monkeypatch.setattr(convs, "PARTS", 32)
    monkeypatch.setattr(convs, "LONGEST", 2**13)
    assert convs.parts_of(1, 16) == convs.parts_of(255, 16) == 1
    assert convs.parts_of(256, 16) == 2
    assert convs.parts_of(2048, 64) == 4
    assert convs.parts_of(2**17, 16) == 32
    assert convs.parts_of(2**19, 64) == 64  # so many pixels that no sum becomes too long


def passes(x: Tensor, weight: Tensor, g: Tensor, stride: int) -> list[Tensor]:
    """What a block's convolution computes, each with the lanes in front."""
    y = convs.forward(x, weight, None, stride, None, True, "ieee")
    of_x = convs.input_gradient(g, weight, x, stride, g, "ieee")
    out = torch.empty(2, *weight.shape, device=DEVICE)
    convs.weight_gradient(g, x, out, None, stride, "ieee")
    return [y, of_x, out.transpose(0, 1)]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's
@pytest.mark.parametrize("stride", [1, 2])
def test_a_lanes_bits_do_not_depend_on_the_other_lanes(stride: int) -> None:
    """Alone, second of three, first of two, beside one that is not finite."""
    x, weight = noise(3, 3, 4, 6, 16).relu(), noise(3, 3, 3, 16, 16, seed=3)
    g = noise(3, 3, 4 // stride, 6 // stride, 16, seed=1)
    alone = passes(x[1:2], weight[1:2], g[1:2], stride)
    many = passes(x, weight, g, stride)
    x[2], weight[2] = torch.nan, torch.inf
    two = passes(x[1:], weight[1:], g[1:], stride)
    for one, three, other in zip(alone, many, two, strict=True):
        assert torch.equal(one[0], three[1])
        assert torch.equal(one[0], other[0])


def test_what_is_not_finite_passes_a_relu() -> None:
    x, weight = noise(K, 2, 4, 4, 16), weights(3, 16, 16)
    x[1, 0, 0, 0, 0] = torch.nan
    for stride in (1, 2):
        y = convs.forward(x, weight, None, stride, None, True, "ieee")
        assert y[1, 0, 0, 0].isnan().all()
        assert y[0].isfinite().all()
        assert y[1, 1].isfinite().all()


@pytest.mark.parametrize("stride", [1, 2])
def test_bf16_sums_in_float32(stride: int) -> None:
    """The error is that of rounding the result, not of a sum in bf16."""
    if DEVICE.type == "cpu":
        pytest.skip("Triton's interpreter multiplies the bits of bf16 as integers")
    x, weight = noise(K, 3, 4, 6, 16).relu().bfloat16(), weights(3, 16, 16)
    weight.copy_(weight.bfloat16())  # the interpreter cuts off where a GPU rounds
    oracle = Oracle(x, weight, stride)
    y = convs.forward(x, weight, None, stride, None, False, "ieee")
    g = noise(*y.shape, seed=1).bfloat16()
    of_x, of_weight = oracle.gradients(g)
    near(y, oracle.y, 2**-7)
    near(convs.input_gradient(g, weight, x, stride, None, "ieee"), of_x * (x > 0), 2**-7)
    out = torch.empty(1, *weight.shape, device=DEVICE)
    convs.weight_gradient(g, x, out, None, stride, "ieee")
    near(out[0], of_weight)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="memory that is only promised is the CPU's")
@pytest.mark.parametrize("stride", [1, 2])
def test_parts_that_lie_beyond_32_bits_are_written_where_they_belong(stride: int) -> None:
    """Three parts of 1.2e9 values, of a mapping that takes no memory until it is written."""
    apart, start = 1_200_000_000, 2_000_000_000  # room before them for an offset that wraps
    values = start + 2 * apart + 10_000
    flags = (
        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000
    )  # MAP_NORESERVE, which Python names from 3.13 on
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        memory = torch.frombuffer(mmap.mmap(-1, 4 * values, flags=flags), dtype=torch.float32)
    size = 9 * 16 * 16
    out = memory.as_strided((3, 1, 3, 3, 16, 16), (apart, size, 768, 256, 16, 1), start)
    x, g = noise(1, 9, 8, 8, 16).relu(), noise(1, 9, 8 // stride, 8 // stride, 16, seed=1)
    convs.weight_gradient(g, x, out, None, stride, "ieee")
    whole = torch.zeros(1, 1, 3, 3, 16, 16)
    convs.weight_gradient(g, x, whole, None, stride, "ieee")
    assert out[2].any()
    torch.testing.assert_close(out.sum(0), whole[0], rtol=1e-4, atol=1e-4)
