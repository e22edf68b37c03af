"""Torch's convolutions of lanes against torch's plain convolution with autograd, lane by lane."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from smallbatch.engines.lanes.inputs import Shared
from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.torch.convs import Grouped, Unrolled

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [  # channels in and out, size, stride, height, width
    pytest.param(16, 16, 3, 1, 8, 8, id="stage"),
    pytest.param(16, 32, 3, 2, 8, 6, id="down"),
    pytest.param(32, 16, 3, 2, 7, 5, id="odd"),
    pytest.param(16, 48, 5, 1, 5, 4, id="5x5"),
    pytest.param(48, 96, 3, 1, 4, 3, id="alexnet"),
    pytest.param(3, 16, 5, 1, 6, 6, id="images"),
    pytest.param(5, 7, 3, 2, 1, 9, id="thin"),
    pytest.param(20, 70, 1, 1, 3, 3, id="1x1"),
]
ALGORITHMS: dict[str, Any] = {"grouped": Grouped(), "unrolled": Unrolled()}
K = 2


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other.to(one), rtol=1e-5, atol=5e-5)


def strided(k: int, *shape: int) -> Tensor:
    """(K, …) as lanes have it: a slice of longer rows, 7 values in."""
    size = torch.Size(shape).numel()
    return noise(k, size + 11, seed=3)[:, 7 : 7 + size].unflatten(1, shape)


def expected(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, shortcut: Shortcut | None
) -> Tensor:
    """Of one lane, in float64."""
    own = None if bias is None else bias.double()
    y = F.conv2d(x.double(), weight.double(), own, stride, weight.shape[-1] // 2)
    if shortcut is None:
        return y
    skip = shortcut.x.double()[..., :: shortcut.stride, :: shortcut.stride]
    return y + F.pad(skip, (0, 0, 0, 0, 0, y.shape[1] - skip.shape[1]))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("c", "out", "size", "stride", "h", "w"), CASES)
def test_every_pass_equals_torchs(
    name: str, fused: bool, c: int, out: int, size: int, stride: int, h: int, w: int
) -> None:
    convs, m = ALGORITHMS[name], 3
    x, weight = noise(m, K * c, h, w).relu(), strided(K, out, c, size, size)
    bias = strided(K, out) if fused else None
    oh, ow = -(-h // stride), -(-w // stride)
    # A forward shortcut of half as many channels, from an input of twice the size.
    skip = Shortcut(noise(m, K * (out // 2), 2 * oh - 1, 2 * ow, seed=4), 2) if fused else None
    y = convs.forward(x, weight, bias, stride, skip, fused)
    g = noise(*y.shape, seed=1)
    end = noise(*y.shape, seed=2) if fused and out >= c else None
    of_x, of_weight = convs.input_gradient(g, weight, x, stride, end), torch.empty_like(weight)
    convs.weight_gradient(g, x, of_weight, stride)
    for k in range(K):
        lane = lambda t, k=k: t.unflatten(1, (K, -1))[:, k]  # noqa: E731
        inputs = lane(x).double().requires_grad_()
        weights = weight[k].double().requires_grad_()
        shortcut = None if skip is None else Shortcut(lane(skip.x), 2)
        forward = expected(inputs, weights, None if bias is None else bias[k], stride, shortcut)
        near(lane(y), forward.relu() if fused else forward)
        loss = (forward * lane(g)).sum()
        if end is not None:
            loss = loss + (inputs[..., ::stride, ::stride] * lane(end)[:, :c]).sum()
        loss.backward()
        assert inputs.grad is not None
        assert weights.grad is not None
        near(lane(of_x), inputs.grad * (lane(x) > 0))
        near(of_weight[k], weights.grad)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_lanes_share_images_by_their_source(name: str) -> None:
    source = torch.tensor([0, 1], device=DEVICE)
    shared, convs = Shared(noise(2, 4, 3, 6, 5), (1, 1), source), ALGORITHMS[name]
    weight, bias = strided(K, 16, 3, 3, 3), strided(K, 16)
    own = shared.images[source].transpose(0, 1).flatten(1, 2)  # (m, K·C, H, W)
    y = convs.forward_shared(shared, weight, bias, 1, True)
    near(y, Grouped().forward(own, weight, bias, 1, None, True))
    mine, theirs = torch.empty_like(weight), torch.empty_like(weight)
    convs.weight_gradient_shared(y, shared, mine, 1)
    Grouped().weight_gradient(y, own, theirs, 1)
    near(mine, theirs)


def test_what_is_not_finite_passes_a_relu() -> None:
    x = noise(2, K * 16, 4, 4)
    x[0, 16] = torch.nan
    weight = strided(K, 16, 16, 3, 3)
    for convs in ALGORITHMS.values():
        y = convs.forward(x, weight, None, 1, None, True).unflatten(1, (K, -1))
        assert y[0, 1].isnan().all()
        assert y[:, 0].isfinite().all()
        assert y[1].isfinite().all()
