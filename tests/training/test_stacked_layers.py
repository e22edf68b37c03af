"""The layers over K lanes against torch's own, lane by lane, with autograd for the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smallbatch.models.alexnet import same_max_pool
from smallbatch.models.norms import BatchNorm as PlainBatchNorm
from smallbatch.models.norms import GhostBatchNorm, group_norm
from smallbatch.training import stacked_conv, stacked_layers, stacked_norms, unroll
from smallbatch.training.lanes import Lanes, stack_lanes

CPU = torch.device("cpu")
K = 3


class _Single(nn.Module):
    """One layer, called ``layer``."""

    def __init__(self, layer: nn.Module, seed: int) -> None:
        super().__init__()
        self.layer = layer
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)


def check(make: Any, make_stacked: Any, shape: tuple[int, ...]) -> None:
    """Compare outputs, gradients and statistics for inputs (C, …, m)."""
    plain = [_Single(make(), seed).double() for seed in range(K)]
    lanes, _ = stack_lanes([lambda m=m: m for m in plain], CPU, torch.float64)
    layer = make_stacked(lanes)
    generator = torch.Generator().manual_seed(99)
    x = torch.randn(K, *shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        out = layer.forward(x.clone(), training=True)
        g = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        before = g.clone()
        gradient = layer.backward(g, needed=True)
    assert torch.equal(g, before)
    for k, module in enumerate(plain):
        inputs = _examples_first(x[k]).requires_grad_()
        expected = module.layer(inputs)
        expected.backward(_examples_first(g[k]).view_as(expected))
        near(_examples_first(out[k]), expected)
        assert inputs.grad is not None
        near(_examples_first(gradient[k]), inputs.grad)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            mine = lanes.gradients[name][k]
            near(mine.permute(3, 1, 0, 2) if mine.dim() == 4 else mine, parameter.grad)
        for name, value in lanes.statistics.items():
            near(value[k], module.state_dict()[name])


def _examples_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous()


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other.view(one.shape), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("block", [2**18, 300], ids=["whole-lanes", "rows"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("height", [6, 9, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_conv(
    monkeypatch: pytest.MonkeyPatch, kernel: int, stride: int, height: int, block: int, bias: bool
) -> None:
    monkeypatch.setitem(unroll.BLOCK, "cpu", block)

    def make() -> nn.Conv2d:
        return nn.Conv2d(2, 3, kernel, stride, padding=kernel // 2, bias=bias)

    def make_stacked(lanes: Lanes) -> stacked_conv.Conv:
        return stacked_conv.Conv(lanes, unroll.Unroller(CPU), "layer", make())

    check(make, make_stacked, (2, height, 7, 4))


def test_conv_buffers_serve_again_without_traces_of_the_last_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(unroll.BLOCK, "cpu", 200)
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    lanes, plain = stack_lanes([lambda: _Single(conv, 0)], CPU, torch.float32)
    layer = stacked_conv.Conv(lanes, unroll.Unroller(CPU), "layer", conv)
    with torch.no_grad():
        x = torch.randn(1, 2, 9, 7, 4)
        first = layer.forward(x, training=False)
        layer.forward(torch.full_like(x, torch.nan), training=False)
        assert torch.equal(layer.forward(x, training=False), first)
        expected = plain.get_submodule("layer")(_examples_first(x[0]))
    torch.testing.assert_close(_examples_first(first[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=[(10**9, 0), (1, 2**17), (1, 20)], ids=["torch's", "long", "in-parts"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    long, cached = request.param
    monkeypatch.setattr(stacked_norms, "LONG", long)
    monkeypatch.setattr(stacked_norms, "CACHED", cached)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("pixels", [(4, 3), ()])
@pytest.mark.parametrize(("size", "m"), [(None, 7), (2, 8), (3, 8), (4, 7), (7, 7)])
def test_batch_and_ghost_norm(pixels: tuple[int, ...], size: int | None, m: int) -> None:
    def make() -> nn.BatchNorm2d:
        if size is None:
            return PlainBatchNorm(5, momentum=0.3)
        return GhostBatchNorm(5, size, momentum=0.3)

    def make_stacked(lanes: Lanes) -> stacked_norms.BatchNorm:
        module = make()
        if isinstance(module, GhostBatchNorm):
            return stacked_norms.GhostNorm(lanes, "layer", module)
        return stacked_norms.BatchNorm(lanes, "layer", module)

    # No rest of one example, which build_model refuses: 8 = 4·2, 8 = 2·3 + 2, 7 = 4 + 3.
    check(make, make_stacked, (5, *pixels, m))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("channels", [16, 5])
@pytest.mark.parametrize("shape", [(4, 3, 7), (7,)])
def test_group_norm(channels: int, shape: tuple[int, ...]) -> None:
    check(
        lambda: group_norm(channels),
        lambda lanes: stacked_norms.GroupNorm(lanes, "layer", group_norm(channels)),
        (channels, *shape),
    )


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e15, 1e17, 1e19, 1e30])
def test_long_rows_are_normalised_as_torch_does(offset: float, scale: float) -> None:
    """In float32, with sums of squares beyond it, and with a mean far above the spread."""
    generator = torch.Generator().manual_seed(0)
    x = scale * (torch.randn(6, 5000, generator=generator) + offset)
    weight, bias, mean, var = torch.rand(4, 6, generator=generator)
    expected_mean, expected_var = mean.clone(), var.clone()
    expected, _, invstd = torch.native_batch_norm(
        x[None], weight, bias, expected_mean, expected_var, True, 0.1, 1e-5
    )
    rows = stacked_norms._Rows(1e-5)
    y = rows.forward(x.clone(), weight, bias, mean, var, 0.1)
    tolerance = 1e-5 + 3e-7 * offset
    torch.testing.assert_close(y, expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(rows.invstd, invstd, rtol=tolerance, atol=0)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(var, expected_var, rtol=1e-5, atol=0)


def test_linear() -> None:
    check(lambda: nn.Linear(6, 4), lambda lanes: stacked_layers.Linear(lanes, "layer"), (6, 5))


LAYERS: dict[str, tuple[Any, Any]] = {
    "relu": (torch.relu, stacked_layers.Relu),
    "pool": (same_max_pool, stacked_layers.MaxPool),
    "flatten": (lambda x: x.flatten(1), stacked_layers.Flatten),
    "mean": (lambda x: x.mean((2, 3)), stacked_layers.GlobalMean),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (3, 5, 7, 2), (2, 1, 1, 1), (1, 3, 2, 4)])
def test_layers_without_parameters(name: str, shape: tuple[int, ...]) -> None:
    function, layer = LAYERS[name]
    plain = torch.randn(K, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stacked = layer()
    with torch.no_grad():
        out = stacked.forward(plain.clone(), training=True)
        g = torch.randn(out.shape, dtype=torch.float64)
        gradient = stacked.backward(g, needed=True)
    for k in range(K):
        inputs = _examples_first(plain[k]).requires_grad_()
        expected = function(inputs)
        expected.backward(_examples_first(g[k]))
        near(_examples_first(out[k]), expected)
        assert inputs.grad is not None
        near(_examples_first(gradient[k]), inputs.grad)
        near(
            _examples_first(stacked.forward(plain[k : k + 1].clone(), training=False)[0]), expected
        )


def test_other_convolutions_are_refused() -> None:
    module = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    lanes, _ = stack_lanes([lambda: _Single(module, 0)], CPU, torch.float32)
    with pytest.raises(ValueError, match="layer: only plain convolutions with SAME padding"):
        stacked_conv.Conv(lanes, unroll.Unroller(CPU), "layer", module)
