"""The layers by Triton's kernels against the plain ones in float64, lane by lane, with autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smallbatch.engines.lanes.inputs import Shared
from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.triton import convs, heads
from smallbatch.engines.lanes.triton.layers import TritonLayers
from smallbatch.engines.lanes.weights import LaneWeights, stack_lanes
from smallbatch.models.alexnet import same_max_pool
from smallbatch.models.norms import BatchNorm, GhostBatchNorm, group_norm
from tests.engines.lanes.triton.tensors import DEVICE, channels_first, near, noise

K, M = 2, 3


class Single(nn.Module):
    """One layer, called ``layer``, behind another's parameters, perhaps followed by a ReLU."""

    def __init__(self, layer: nn.Module, seed: int, relu: bool) -> None:
        super().__init__()
        self.before, self.layer, self.relu = nn.Linear(3, 1), layer, relu
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(channels_first(x) if x.dim() > 2 else x)
        y = y.movedim(1, -1) if y.dim() > 2 else y
        return y.relu() if self.relu else y


def make_kit(make: Callable[[], nn.Module], relu: bool, m: int) -> tuple[list[Single], Any]:
    plain = [Single(make(), seed, relu) for seed in range(K)]
    lanes, _ = stack_lanes([lambda p=p: p for p in plain], DEVICE, torch.float32, packed=True)
    kit = TritonLayers(lanes, m, (4, 6), "ieee", torch.float32)
    return [module.double().to(DEVICE) for module in plain], kit


def check_gradients(lanes: LaneWeights, plain: list[Single]) -> None:
    """Of the parameters and, where there are any, the running statistics."""
    for lane, module in enumerate(plain):
        for name, parameter in module.layer.named_parameters(prefix="layer"):
            assert parameter.grad is not None
            near(lanes.parts(name).sum(0)[lane], parameter.grad)
        for name, value in lanes.statistics.items():
            near(value[lane], module.state_dict()[name])


def check(
    make: Callable[[], nn.Module],
    make_layer: Callable[[Any], Any],
    shape: tuple[int, ...],
    *,
    relu: bool,
    masked: bool,
) -> None:
    """Compare outputs, gradients and statistics for inputs (K, m, …, C).

    Args:
        make: the plain layer.
        make_layer: from a kit to the layer over lanes.
        shape: of the inputs.
        relu: whether the layer over lanes clips its output.
        masked: whether it takes its input as clipped and masks that one's gradient.
    """
    plain, kit = make_kit(make, relu, shape[1])
    layer = make_layer(kit)
    kit.finish()
    x = noise(*shape)
    x = x.relu() if masked else x
    with torch.no_grad():
        y = layer.forward(x, training=True)
        g = noise(*y.shape, seed=1) * ((y > 0) if relu else 1)
        before = g.clone()
        of_x = layer.backward(g)
        kit.end_backward()
    assert torch.equal(g, before)
    assert of_x.is_contiguous()
    for lane, module in enumerate(plain):
        inputs = x[lane].double().requires_grad_()
        expected = module(inputs)
        expected.backward(g[lane].double())
        near(y[lane], expected.detach())
        assert inputs.grad is not None
        near(of_x[lane], inputs.grad * (x[lane] > 0) if masked else inputs.grad)
    check_gradients(kit.lanes, plain)


@pytest.mark.parametrize("share", [1, 2**20], ids=["in parts", "in one"])
@pytest.mark.parametrize(("stride", "bias"), [(1, True), (2, False)])
def test_conv(monkeypatch: pytest.MonkeyPatch, stride: int, bias: bool, share: int) -> None:
    monkeypatch.setattr(convs, "SHARE", share)

    def make() -> nn.Conv2d:
        return nn.Conv2d(16, 16, 3, stride, padding=1, bias=bias)

    def make_layer(kit: TritonLayers) -> Any:
        layer = kit.conv("layer", make(), relu=bias)
        assert kit.side == (4 // stride, 6 // stride)
        return layer

    check(make, make_layer, (K, M, 4, 6, 16), relu=bias, masked=True)


@pytest.mark.parametrize("bias", [True, False])
def test_first_conv_gives_each_lane_its_seeds_images(
    monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    monkeypatch.setattr(convs, "SHARE", 1)
    make = lambda: nn.Conv2d(3, 16, 3, padding=1, bias=bias)  # noqa: E731
    plain, kit = make_kit(make, bias, M)
    layer = kit.first(kit.conv("layer", make(), bias))
    kit.finish()
    images = noise(2, M, 3, 4, 6)
    source = torch.tensor([0, 1], device=DEVICE)
    with torch.no_grad():
        y = layer.forward(Shared(images, (1, 1), source), training=True)
        g = noise(*y.shape, seed=1) * ((y > 0) if bias else 1)
        layer.backward(g)
    for lane, module in enumerate(plain):
        expected = module(images[lane].movedim(1, -1).double())
        expected.backward(g[lane].double())
        near(y[lane], expected.detach())
    assert len(kit.lanes.partial) == 4  # 72 pixels for 16 channels
    check_gradients(kit.lanes, plain)


def test_a_first_convolution_with_a_stride_is_refused() -> None:
    make = lambda: nn.Conv2d(3, 16, 3, 2, padding=1)  # noqa: E731
    _, kit = make_kit(make, False, M)
    with pytest.raises(ValueError, match=r"layer\.weight: the first convolution has stride 1"):
        kit.first(kit.conv("layer", make(), False))


@pytest.mark.parametrize("changes", [{"groups": 2}, {"padding": 0}, {"dilation": 2}])
def test_other_convolutions_are_refused(changes: dict[str, int]) -> None:
    module = nn.Conv2d(4, 4, 3, **{"padding": 1, **changes})  # pyright: ignore[reportArgumentType]
    _, kit = make_kit(lambda: module, False, M)
    with pytest.raises(ValueError, match="layer: only plain convolutions with SAME padding"):
        kit.conv("layer", module, False)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(relu: bool, bias: bool) -> None:
    make = lambda: nn.Linear(6, 4, bias=bias)  # noqa: E731
    check(make, lambda kit: kit.linear("layer", relu), (K, 5, 6), relu=relu, masked=True)


class MeanAndLinear(nn.Linear):
    """The end of a ResNet."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as its base class names it
        return super().forward(input.mean((2, 3)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("m", "side", "channels", "classes"),
    [(3, (4, 6), 16, 10), (5, (1, 1), 64, 3), (70, (2, 3), 20, 17), (2, (9, 9), 64, 100)],
)
def test_the_head(
    monkeypatch: pytest.MonkeyPatch, bias: bool, m: int, side: tuple[int, int], channels: int,
    classes: int,
) -> None:  # fmt: skip
    """Of more pixels than a tile, of sizes that are no powers of two, its sums in parts."""
    monkeypatch.setattr(convs, "SHARE", 1)
    monkeypatch.setattr(heads, "TILE", 1024)
    make = lambda: MeanAndLinear(channels, classes, bias=bias)  # noqa: E731
    shape = (K, m, *side, channels)
    check(make, lambda kit: kit.head("layer", make()), shape, relu=False, masked=True)


def test_the_heads_trial_before_first_use_passes() -> None:
    assert heads.agrees(DEVICE)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: BatchNorm(16, momentum=0.3),
    "ghost": lambda: GhostBatchNorm(16, 3, momentum=0.3),
    "group": lambda: group_norm(16),
}


@pytest.mark.parametrize("shape", [(2, 3), ()])
@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm: str, shape: tuple[int, ...]) -> None:
    make = NORMS[norm]
    m = 8 if shape else 11  # no sub-batch of one or two values, nothing but ±1
    shape = (K, m, *shape, 16)
    check(make, lambda kit: kit.norm("layer", make()), shape, relu=True, masked=False)


@pytest.mark.parametrize("norm", NORMS)
def test_a_shortcut_joins_a_norms_output(norm: str) -> None:
    """Of half as many channels, from twice as many pixels; then the ReLU."""
    plain, kit = make_kit(NORMS[norm], False, 3)
    layer = kit.norm("layer", NORMS[norm]())
    x, skip = noise(K, 3, 2, 3, 16), noise(K, 3, 3, 6, 8, seed=2)
    for training in (True, False):
        with torch.no_grad():
            y = layer.forward(x, training, Shortcut(skip, 2))
        for lane, module in enumerate(plain):
            expected = module.train(training)(x[lane].double())
            expected[..., :8] += skip[lane, :, ::2, ::2]
            near(y[lane], expected.relu().detach())


def test_a_layer_that_has_no_stacked_form_is_refused() -> None:
    _, kit = make_kit(lambda: nn.LayerNorm(3), False, M)
    with pytest.raises(TypeError, match="LayerNorm has no stacked form"):
        kit.norm("layer", nn.LayerNorm(3))


# Name: the plain function, the kit's method, whether it masks its input's gradient.
PLAIN: dict[str, tuple[Callable[[Tensor], Tensor], str, bool]] = {
    "pool": (same_max_pool, "pool", False),
    "flatten": (lambda x: x.flatten(1), "flatten", False),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(4, 6, 5), (5, 7, 3), (1, 1, 2)])
def test_layers_without_parameters(name: str, shape: tuple[int, ...]) -> None:
    function, method, masked = PLAIN[name]
    check(
        lambda: Function(function), lambda kit: getattr(kit, method)(), (K, M, *shape),
        relu=False, masked=masked,
    )  # fmt: skip


def test_the_side_that_a_pool_leaves_is_the_next_layers() -> None:
    _, kit = make_kit(lambda: nn.Conv2d(16, 16, 3, padding=1), False, M)
    kit.side = (5, 8)
    kit.pool()
    assert kit.side == (3, 4)


def test_logits_are_by_example() -> None:
    _, kit = make_kit(lambda: nn.Linear(3, 1), False, M)
    x = noise(K, M, 10)
    assert torch.equal(kit.logits(x), x.transpose(0, 1))
    back = kit.of_logits(kit.logits(x))
    assert torch.equal(back, x)
    assert back.is_contiguous()
