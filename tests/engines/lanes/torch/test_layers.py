"""The layers over K lanes against torch's own, lane by lane, with autograd for the gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smallbatch.engines.lanes.inputs import Shared
from smallbatch.engines.lanes.torch import layers as stacked_layers
from smallbatch.engines.lanes.torch import norms as stacked_norms
from smallbatch.engines.lanes.torch.convs import Grouped
from smallbatch.engines.lanes.weights import LaneWeights, stack_lanes
from smallbatch.models.alexnet import same_max_pool
from smallbatch.models.norms import BatchNorm as PlainBatchNorm
from smallbatch.models.norms import GhostBatchNorm, group_norm

CPU = torch.device("cpu")
K = 3


class _Single(nn.Module):
    """One layer, called ``layer``, perhaps followed by a ReLU."""

    def __init__(self, layer: nn.Module, seed: int, relu: bool) -> None:
        super().__init__()
        self.layer, self.relu = layer, relu
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y.relu() if self.relu else y


def noise(*shape: int, seed: int = 99) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def side_by_side(x: Tensor) -> Tensor:
    """(K, m, C, …) → (m, K·C, …)."""
    return x.transpose(0, 1).flatten(1, 2).contiguous()


def apart(x: Tensor) -> Tensor:
    """(m, K·C, …) → (K, m, C, …)."""
    return x.unflatten(1, (K, -1)).transpose(0, 1)


def check(
    make: Callable[[], nn.Module],
    make_stacked: Callable[[LaneWeights], Any],
    shape: tuple[int, ...],
    *,
    relu: bool,
    masked: bool,
) -> None:
    """Compare outputs, gradients and statistics for inputs (m, C, …) of every lane.

    Args:
        relu: whether the stacked layer clips its output.
        masked: whether it takes its input as clipped and masks that one's gradient.
    """
    plain = [_Single(make(), seed, relu).double() for seed in range(K)]
    lanes, _ = stack_lanes([lambda m=m: m for m in plain], CPU, torch.float64)
    layer = make_stacked(lanes)
    x = noise(K, *shape)
    x = x.relu() if masked else x
    with torch.no_grad():
        out = layer.forward(side_by_side(x), training=True)
        g = noise(*out.shape, seed=1) * ((out > 0) if relu else 1)
        before = g.clone()
        gradient = apart(layer.backward(g))
    assert torch.equal(g, before)
    for k, module in enumerate(plain):
        inputs = x[k].clone().requires_grad_()
        expected = module(inputs)
        expected.backward(apart(g)[k])
        near(apart(out)[k], expected)
        assert inputs.grad is not None
        near(gradient[k], inputs.grad * (x[k] > 0) if masked else inputs.grad)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            near(lanes.gradients[name][k], parameter.grad)
        for name, value in lanes.statistics.items():
            near(value[k], module.state_dict()[name])


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("height", [6, 9, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_conv(kernel: int, stride: int, height: int, bias: bool) -> None:
    def make() -> nn.Conv2d:
        return nn.Conv2d(2, 3, kernel, stride, padding=kernel // 2, bias=bias)

    def make_stacked(lanes: LaneWeights) -> stacked_layers.Conv:
        return stacked_layers.Conv(lanes, "layer", make(), Grouped(), relu=bias)

    check(make, make_stacked, (4, 2, height, 7), relu=bias, masked=True)


@pytest.mark.parametrize("bias", [True, False])
def test_first_conv_gives_each_lane_its_seeds_images(bias: bool) -> None:
    make = lambda: nn.Conv2d(2, 3, 3, padding=1, bias=bias)  # noqa: E731
    plain = [_Single(make(), seed, bias).double() for seed in range(K)]
    lanes, _ = stack_lanes([lambda m=m: m for m in plain], CPU, torch.float64)
    conv = stacked_layers.Conv(lanes, "layer", make(), Grouped(), relu=bias)
    layer, images = stacked_layers.FirstConv(conv, torch.float64), noise(2, 4, 2, 6, 7)
    with torch.no_grad():
        out = layer.forward(Shared(images, (2, 1), torch.tensor([0, 0, 1])), training=True)
        g = noise(*out.shape, seed=1) * ((out > 0) if bias else 1)
        layer.backward(g)
    for k, module in enumerate(plain):
        expected = module(images[k // 2])
        expected.backward(apart(g)[k])
        near(apart(out)[k], expected)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            near(lanes.gradients[name][k], parameter.grad)


@pytest.mark.parametrize("pixels", [(4, 3), ()])
@pytest.mark.parametrize(("size", "m"), [(None, 7), (2, 8), (3, 8), (4, 7), (7, 7), (9, 7)])
def test_batch_and_ghost_norm(pixels: tuple[int, ...], size: int | None, m: int) -> None:
    def make() -> nn.BatchNorm2d:
        if size is None:
            return PlainBatchNorm(5, momentum=0.3)
        return GhostBatchNorm(5, size, momentum=0.3)

    def make_stacked(lanes: LaneWeights) -> stacked_norms.BatchNorm:
        module = make()
        if isinstance(module, GhostBatchNorm):
            return stacked_norms.GhostNorm(lanes, "layer", module)
        return stacked_norms.BatchNorm(lanes, "layer", module)

    # No rest of one example, which build_model refuses: 8 = 4·2, 8 = 2·3 + 2, 7 = 4 + 3.
    check(make, make_stacked, (m, 5, *pixels), relu=True, masked=False)


@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize("pixels", [(4, 3), ()])
def test_group_norm(channels: int, pixels: tuple[int, ...]) -> None:
    def make_stacked(lanes: LaneWeights) -> stacked_norms.GroupNorm:
        return stacked_norms.GroupNorm(lanes, "layer", group_norm(channels))

    check(
        lambda: group_norm(channels), make_stacked, (7, channels, *pixels), relu=True, masked=False
    )


@pytest.mark.parametrize("relu", [True, False])
def test_linear(relu: bool) -> None:
    check(
        lambda: nn.Linear(6, 4),
        lambda lanes: stacked_layers.Linear(lanes, "layer", relu),
        (5, 6),
        relu=relu,
        masked=True,
    )


# Name: the plain function, the layer, whether it masks its input's gradient.
LAYERS: dict[str, tuple[Callable[[Tensor], Tensor], Any, bool]] = {
    "pool": (same_max_pool, stacked_layers.MaxPool, False),
    "flatten": (lambda x: x.flatten(1), stacked_layers.Flatten, False),
    "mean": (lambda x: x.mean((2, 3)), stacked_layers.GlobalMean, True),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (2, 3, 5, 7), (1, 2, 1, 1), (4, 1, 3, 2)])
def test_layers_without_parameters(name: str, shape: tuple[int, ...]) -> None:
    function, layer, masked = LAYERS[name]
    x = noise(K, *shape)
    x = x.relu() if masked else x
    stacked = layer()
    with torch.no_grad():
        out = stacked.forward(side_by_side(x), training=True)
        g = noise(*out.shape, seed=1)
        gradient = apart(stacked.backward(g))
        again = stacked.forward(side_by_side(x), training=False)
    assert torch.equal(out, again)
    for k in range(K):
        inputs = x[k].clone().requires_grad_()
        expected = function(inputs)
        expected.backward(apart(g)[k])
        near(apart(out)[k], expected)
        assert inputs.grad is not None
        near(gradient[k], inputs.grad * (x[k] > 0) if masked else inputs.grad)


@pytest.mark.parametrize("changes", [{"groups": 2}, {"padding": 0}, {"dilation": 2}])
def test_other_convolutions_are_refused(changes: dict[str, int]) -> None:
    module = nn.Conv2d(4, 4, 3, **{"padding": 1, **changes})  # pyright: ignore[reportArgumentType]
    lanes, _ = stack_lanes([lambda: _Single(module, 0, False)], CPU, torch.float32)
    with pytest.raises(ValueError, match="layer: only plain convolutions with SAME padding"):
        stacked_layers.Conv(lanes, "layer", module, Grouped(), relu=False)
