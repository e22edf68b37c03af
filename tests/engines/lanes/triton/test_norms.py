"""Batch and ghost norm by Triton's kernels against the plain layers with autograd in float64."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.triton import norms
from smallbatch.models.norms import BatchNorm, GhostBatchNorm
from tests.engines.lanes.triton.tensors import DEVICE, GAP, channels_first, in_rows, near, noise

K, EPS, MOMENTUM = 2, 1e-5, 0.3


class Passes(NamedTuple):
    """What a layer computes, with the lanes in front."""

    y: Tensor
    of_x: Tensor
    of_scale: Tensor
    of_shift: Tensor
    mean: Tensor
    var: Tensor
    late: Tensor  # the output in evaluation mode, after the update of the statistics


def affine(c: int) -> tuple[Tensor, Tensor]:
    """Scale and shift as lanes have them: a part of longer rows."""
    _, both = in_rows(K, shape=(2, c))
    both.copy_(noise(K, 2, c, seed=7))
    return both[:, 0], both[:, 1]


def statistics(c: int) -> tuple[Tensor, Tensor]:
    return noise(K, c, seed=8), noise(K, c, seed=9).square()


def by_kernels(x: Tensor, g: Tensor, size: int | None, shortcut: Shortcut | None) -> Passes:
    c, m = x.shape[-1], x.shape[1]
    (scale, shift), running = affine(c), statistics(c)
    y, kept = norms.forward(
        x, scale, shift, running, size or m, MOMENTUM, EPS, shortcut, training=True
    )
    rows, out = in_rows(K, shape=(2, c))
    of_x = norms.backward(g * (y > 0), x, scale, kept, size or m, out[:, 0], out[:, 1])
    assert rows[:, :16].eq(GAP).all()
    assert rows[:, -32:].eq(GAP).all()
    late, _ = norms.forward(
        x, scale, shift, running, size or m, MOMENTUM, EPS, shortcut, training=False
    )
    return Passes(y, of_x, out[:, 0], out[:, 1], *running, late)


def plain_layer(lane: int, c: int, size: int | None) -> nn.BatchNorm2d:
    layer = BatchNorm(c, eps=EPS, momentum=MOMENTUM)
    if size is not None:
        layer = GhostBatchNorm(c, size, EPS, MOMENTUM)
    values = {"weight": affine(c)[0], "bias": affine(c)[1]}
    values |= {"running_mean": statistics(c)[0], "running_var": statistics(c)[1]}
    tensors = layer.state_dict()
    layer.load_state_dict(tensors | {name: value[lane] for name, value in values.items()})
    return layer.double().to(DEVICE)


def by_torch(x: Tensor, g: Tensor, size: int | None, shortcut: Shortcut | None) -> Passes:
    found: list[tuple[Any, ...]] = []
    for lane in range(K):
        layer = plain_layer(lane, x.shape[-1], size)
        inputs = x[lane].double().requires_grad_()
        skip = None
        if shortcut is not None:
            s = shortcut.stride
            skip = shortcut.x[lane, :, ::s, ::s].double()
            skip = F.pad(skip, (0, x.shape[-1] - skip.shape[-1]))

        def output(inputs: Tensor = inputs, layer: nn.Module = layer, skip: Tensor | None = skip):
            if inputs.dim() == 2:
                return layer(inputs).relu()
            y = layer(channels_first(inputs)).movedim(1, -1)
            return (y if skip is None else y + skip).relu()

        y = output()
        y.backward(g[lane].double())
        gradients: list[Any] = [inputs.grad, layer.weight.grad, layer.bias.grad]
        layer.eval()
        found.append((y, *gradients, layer.running_mean, layer.running_var, output()))
    return Passes(*[torch.stack(values).detach() for values in zip(*found, strict=True)])


def check(x: Tensor, g: Tensor, size: int | None = None, shortcut: Shortcut | None = None) -> None:
    pairs = zip(by_kernels(x, g, size, shortcut), by_torch(x, g, size, shortcut), strict=True)
    for name, (mine, theirs) in zip(Passes._fields, pairs, strict=True):
        try:
            near(mine, theirs)
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.fixture(params=["whole", "stretches"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of one kernel, or with a first one that sums over stretches, and more than one tile."""
    if request.param == "stretches":
        monkeypatch.setattr(norms, "WHOLE", 0)
        monkeypatch.setattr(norms, "STRETCH", 96)
        monkeypatch.setattr(norms, "TILE", 64)
    return request.param


@pytest.mark.parametrize(
    ("size", "m", "shortcut"),
    [(None, 5, True), (2, 4, False), (3, 8, True), (8, 5, False)],
)
def test_equals_the_plain_layers(way: str, size: int | None, m: int, shortcut: bool) -> None:
    """Sub-batches that divide m, one with a smaller rest (8 = 3 + 3 + 2), one larger than m."""
    c, h, w = 12, 3, 4
    x, g = 3 + noise(K, m, h, w, c), noise(K, m, h, w, c, seed=1)
    skip = Shortcut(noise(K, m, 2 * h - 1, 2 * w, c // 2, seed=2), 2) if shortcut else None
    by = norms.cut(m, h * w, c, size or m)
    assert by.whole == (way == "whole" and (size or m) >= m)
    assert by.stretches == 1 or way == "stretches"
    assert c > by.channels  # more than one block of them
    check(x, g, size, skip)


def test_a_shortcut_of_as_many_channels(way: str) -> None:
    x, g = noise(K, 3, 4, 4, 8), noise(K, 3, 4, 4, 8, seed=1)
    check(x, g, None, Shortcut(noise(K, 3, 4, 4, 8, seed=2), 1))


@pytest.mark.parametrize(("size", "m"), [(None, 9), (4, 11)])
def test_features_without_pixels(way: str, size: int | None, m: int) -> None:
    check(1 + noise(K, m, 20), noise(K, m, 20, seed=1), size)


def test_programs_with_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "WHOLE", 0)
    monkeypatch.setattr(norms, "STRETCH", 512)
    monkeypatch.setattr(norms, "TILE", 32)
    by = norms.cut(5, 7 * 9, 8, 5)
    assert by.per == 4
    assert by.programs * by.per * by.tile > 5 * 7 * 9  # the last program has less to do
    check(noise(K, 5, 7, 9, 8), noise(K, 5, 7, 9, 8, seed=1))


def test_every_pixel_belongs_to_one_stretch_and_one_tile() -> None:
    for m, pixels, c, size in [(2, 1024, 16, 2), (128, 1024, 16, 128), (128, 64, 64, 32),
                               (48, 256, 48, 10), (512, 1, 256, 512)]:  # fmt: skip
        by = norms.cut(m, pixels, c, size)
        assert c % by.channels == 0
        assert by.groups * size >= m > (by.groups - 1) * size
        total = size * pixels
        assert by.stretches * by.span >= total > (by.stretches - 1) * by.span
        assert by.programs * by.per * by.tile >= total
        assert by.stretches <= norms.STRETCHES


def test_a_large_mean_costs_no_digits(way: str) -> None:
    x = 1e3 + noise(K, 4, 6, 6, 8)
    (scale, shift), (mean, var) = affine(8), statistics(8)
    _, kept = norms.forward(x, scale, shift, (mean, var), 4, MOMENTUM, EPS, None)
    exact = x.double().flatten(1, 3)
    torch.testing.assert_close(kept[0, :, 0].double(), exact.mean(1), rtol=1e-6, atol=0)
    invstd = (exact.var(1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(kept[1, :, 0].double(), invstd, rtol=1e-5, atol=0)


def test_what_is_not_finite_stays_in_its_lane_and_channel(way: str) -> None:
    x, g = noise(K, 4, 3, 4, 8), noise(K, 4, 3, 4, 8, seed=1)
    expected = by_kernels(x, g, None, None)
    x[1, 1, 2, 0, 3] = torch.nan
    found = by_kernels(x, g, None, None)
    others = [i for i in range(8) if i != 3]
    assert found.y[1, ..., 3].isnan().all()
    assert found.mean[1, 3].isnan()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1, ..., others], other[1, ..., others])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_variance_that_overflows_is_infinite(way: str) -> None:
    """The normalised values are then 0, the output relu(shift), and not NaN."""
    x = 1e25 * noise(K, 4, 3, 4, 8)
    (scale, shift), running = affine(8), statistics(8)
    y, kept = norms.forward(x, scale, shift, running, 4, MOMENTUM, EPS, None)
    assert kept[1].eq(0).all()
    assert torch.equal(y, shift.relu()[:, None, None, None].expand_as(y))
    assert running[1].eq(torch.inf).all()


@pytest.mark.parametrize("size", [None, 2])
def test_a_lanes_bits_do_not_depend_on_the_other_lanes(way: str, size: int | None) -> None:
    x, (scale, shift) = noise(K, 5, 3, 4, 8), affine(8)

    def passes(lanes: slice) -> list[Tensor]:
        running = noise(K, 8)[lanes].contiguous(), noise(K, 8).square()[lanes].contiguous()
        own, out = x[lanes].contiguous(), torch.empty(2, len(x[lanes]), 8, device=DEVICE)
        args = (scale[lanes], shift[lanes], running, size or 5, MOMENTUM, EPS, None)
        y, kept = norms.forward(own, *args)
        of_x = norms.backward(own, own, scale[lanes], kept, size or 5, out[0], out[1])
        return [y, of_x, out[0], out[1], *running]

    for one, other in zip(passes(slice(1, 2)), passes(slice(0, 2)), strict=True):
        assert torch.equal(one[0], other[1])


def test_bf16_is_normalised_in_float32(way: str) -> None:
    x, g = noise(K, 4, 3, 4, 8).bfloat16(), noise(K, 4, 3, 4, 8, seed=1).bfloat16()
    mine, theirs = by_kernels(x, g, None, None), by_torch(x, g, None, None)
    assert mine.y.dtype == mine.of_x.dtype == torch.bfloat16
    near(mine.y, theirs.y, 2**-7)
    near(mine.of_x, theirs.of_x, 2**-7)
    near(mine.mean, theirs.mean)
    near(mine.var, theirs.var)


def test_the_trial_before_first_use_passes() -> None:
    assert norms.agrees(DEVICE)
