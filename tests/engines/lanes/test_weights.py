"""The memory of the lanes: how it is laid out for the kernels, and gradients in parts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from smallbatch.engines import loop
from smallbatch.engines.lanes.inputs import seen_by_all
from smallbatch.engines.lanes.torch.lanes import build_net
from smallbatch.engines.lanes.triton import convs
from smallbatch.engines.lanes.weights import ALIGNED, SPAN, LaneWeights, stack_lanes
from tests.engines.lanes.test_trainer import CPU, grid, noise_data, study

MODELS = [("resnet8", "none"), ("resnet8", "batch"), ("alexnet", "batch_conv"), ("alexnet", "none")]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Toy(nn.Module):
    """Parameters of 54, 3, 2200 and 1 values, and one in several dimensions that is no image's."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.fc = nn.Linear(2200, 1)
        self.scalar = nn.Parameter(torch.zeros(()))
        self.norm = nn.BatchNorm1d(5)
        for i, tensor in enumerate([*self.parameters(), *self.buffers()]):
            if tensor.is_floating_point():
                tensor.data = noise(*tensor.shape, seed=100 * seed + i)


def toys(k: int = 3, *, packed: bool = True) -> LaneWeights:
    builders = [partial(Toy, seed) for seed in range(k)]
    return stack_lanes(builders, CPU, torch.float32, packed=packed)[0]


def descended(lanes: LaneWeights) -> Tensor:
    """The gradient as the update's kernel sums it: of a span as many parts as are used."""
    used = lanes.used.repeat_interleave(SPAN)[: lanes.theta.shape[1]]
    part = torch.arange(len(lanes.partial))[:, None]
    return torch.where((part < used)[:, None], lanes.partial, 0).sum(0)


@pytest.mark.parametrize(("model", "norm"), MODELS)
def test_packed_lanes_give_the_plain_models_state_back(model: str, norm: str) -> None:
    data = noise_data(16, dtype=torch.float32)
    runs = grid(study(model, norm), 16, [0.1])
    builders = [partial(loop.initial_model, run, data) for run in runs]
    lanes, _ = stack_lanes(builders, CPU, torch.float32, packed=True)
    for lane, build in enumerate(builders):
        expected, found = build().state_dict(), lanes.state_dict(lane)
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert torch.equal(found[name], value), name
            assert found[name].is_contiguous()
            assert found[name].untyped_storage().nbytes() == value.numel() * value.itemsize
    plain = sum(value.numel() for value in builders[0]().parameters())
    assert lanes.parameters == plain
    assert plain < lanes.theta.shape[1] < plain + ALIGNED * len(lanes.shapes)


def test_packed_weights_lie_as_the_kernels_read_them() -> None:
    lanes = toys()
    start = 0
    for name, shape in lanes.shapes.items():
        view, gradient = lanes.views[name], lanes.gradients[name]
        assert view.shape == gradient.shape == (3, *shape)
        assert view.data_ptr() == lanes.theta[0, start:].data_ptr()
        assert start % ALIGNED == 0
        values = view[1]
        if name == "conv.weight":
            values = values.permute(2, 3, 1, 0)  # (size, size, C, O)
        assert values.is_contiguous()
        assert torch.equal(values.flatten(), lanes.theta[1, start : start + shape.numel()])
        gap = lanes.theta[:, start + shape.numel() : start + -(-shape.numel() // ALIGNED) * ALIGNED]
        assert not gap.any()
        start += shape.numel() + gap.shape[1]
    assert start == lanes.theta.shape[1]
    loose = toys(packed=False)
    assert loose.theta.shape[1] == loose.parameters
    for name, value in loose.views.items():
        assert torch.equal(value, lanes.views[name])
        assert value[0].is_contiguous()


@pytest.mark.parametrize("packed", [True, False])
def test_the_gradient_is_the_sum_of_the_parts(packed: bool) -> None:
    lanes, counts = toys(packed=packed), {"conv.weight": 4, "fc.weight": 2, "fc.bias": 3}
    lanes.split(counts)
    expected = torch.zeros_like(lanes.theta)
    whole = LaneWeights(expected, lanes.shapes, {}, {}, packed)
    for i, name in enumerate(lanes.shapes):
        parts = lanes.parts(name)
        assert parts.shape == (counts.get(name, 1), 3, *lanes.shapes[name])
        assert lanes.gradients[name].data_ptr() == parts.data_ptr()
        parts.copy_(noise(*parts.shape, seed=i))
        whole.views[name].copy_(parts.sum(0))
    torch.testing.assert_close(lanes.gradient, expected)
    torch.testing.assert_close(descended(lanes), expected)
    before, rates = lanes.theta.clone(), noise(2, 3)
    lanes.update(*rates)
    new = before * rates[0, :, None] - expected * rates[1, :, None]
    torch.testing.assert_close(lanes.theta, new)


def test_a_span_has_as_many_parts_as_its_parameter_with_the_most() -> None:
    lanes = toys()
    ends = [int(-(-shape.numel() // ALIGNED) * ALIGNED) for shape in lanes.shapes.values()]
    assert list(lanes.shapes)[:4] == ["scalar", "conv.weight", "conv.bias", "fc.weight"]
    assert sum(ends[:3]) < SPAN < sum(ends[:4]) < 3 * SPAN
    assert lanes.used.tolist() == [1, 1, 1]
    lanes.split({"conv.weight": 4, "fc.bias": 2})
    assert lanes.used.tolist() == [4, 1, 2]
    lanes.split({"fc.weight": 3})  # no trace of what was said before
    assert lanes.used.tolist() == [3, 3, 3]
    assert len(lanes.partial) == 3


@pytest.mark.parametrize("kept", [[1], [2, 0], [0, 1, 2]])
def test_lanes_that_are_kept_keep_all_they_have(kept: list[int]) -> None:
    lanes = toys()
    lanes.split({"fc.weight": 2})
    states, used = [lanes.state_dict(lane) for lane in kept], lanes.used.clone()
    lanes.keep(torch.tensor(kept))
    assert len(lanes) == len(kept)
    for lane, state in enumerate(states):
        for name, value in lanes.state_dict(lane).items():
            assert torch.equal(value, state[name])
    assert lanes.parts("fc.weight").shape == (2, len(kept), 1, 2200)
    assert lanes.partial.shape == (2, *lanes.theta.shape)
    assert torch.equal(lanes.used, used)
    lanes.views["fc.bias"].fill_(5)  # still views
    assert lanes.theta.eq(5).sum() == len(kept)
    lanes.parts("fc.weight")[1].fill_(1)
    assert descended(lanes).sum() == len(kept) * 2200


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, *more: object) -> Tensor:
    k, m, h, w, _ = x.shape
    return x.new_zeros(k, m, -(-h // stride), -(-w // stride), weight.shape[4])


def _forward_images(images: Tensor, source: Tensor, weight: Tensor, *more: object) -> Tensor:
    return images.new_zeros(len(source), *images.shape[1:4], weight.shape[4])


@pytest.mark.parametrize("model", ["resnet8", "alexnet"])
def test_every_part_that_a_layer_writes_is_one_that_the_update_reads(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """Once layers wrote more parts than the update read."""
    written: dict[int, int] = {}

    def write(out: Tensor, of_bias: Tensor | None) -> None:
        for tensor in (out, *([] if of_bias is None else [of_bias])):
            tensor.fill_(1.0)
            written[tensor.data_ptr()] = len(tensor)

    monkeypatch.setattr(convs, "SHARE", 1)
    monkeypatch.setattr(convs, "forward", _forward)
    monkeypatch.setattr(convs, "forward_images", _forward_images)
    monkeypatch.setattr(convs, "input_gradient", lambda g, weight, x, *_: torch.zeros_like(x))
    monkeypatch.setattr(convs, "weight_gradient", lambda g, x, out, bias, *_: write(out, bias))
    monkeypatch.setattr(
        convs, "weight_gradient_images", lambda g, x, source, out, bias, *_: write(out, bias)
    )
    data = noise_data(16, dtype=torch.float32)
    net, _ = build_net(grid(study(model), 16, [0.1]), data, torch.float32, "triton")
    with torch.no_grad():
        logits = net.forward(seen_by_all(data.train.images, 2), training=True)
        net.backward(torch.zeros_like(logits))
    lanes, counts = net.lanes, set[int]()
    for name in lanes.shapes:
        parts = lanes.parts(name)
        counts.add(len(parts))
        if ".conv" in name or name.startswith("conv"):
            assert written.pop(parts.data_ptr()) == len(parts), name
            assert parts.eq(1).all()
    assert not written
    assert len(counts) > 2
    assert max(counts) == len(lanes.partial)
    torch.testing.assert_close(descended(lanes), lanes.gradient)
