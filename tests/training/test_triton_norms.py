"""Batch norm by Triton's kernels against torch's layers over the same lanes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smallbatch.models.norms import BatchNorm, GhostBatchNorm
from smallbatch.training.stacked import norms as stacked_norms
from smallbatch.training.stacked import triton_norms
from smallbatch.training.stacked.convs import Shortcut
from smallbatch.training.stacked.lanes import Lanes, stack_lanes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
K, C = 2, 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


class _Single(nn.Module):
    def __init__(self, layer: nn.Module, seed: int) -> None:
        super().__init__()
        self.before = nn.Linear(3, 1)  # so that the layer's parameters do not begin a lane's row
        self.layer = layer
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)


def make_lanes(size: int | None) -> tuple[Lanes, Any]:
    def make() -> nn.BatchNorm2d:
        return BatchNorm(C, momentum=0.3) if size is None else GhostBatchNorm(C, size, momentum=0.3)

    lanes, _ = stack_lanes(
        [lambda seed=seed: _Single(make(), seed) for seed in range(K)], DEVICE, torch.float32
    )
    return lanes, make()


def passes(layer: Any, lanes: Lanes, x: Tensor, g: Tensor, shortcut: Shortcut | None) -> Any:
    with torch.no_grad():
        y = layer.forward(x, True, shortcut)
        of_x = layer.backward(g * (y > 0))
        late = layer.forward(x, False, shortcut)
    names = ("layer.weight", "layer.bias")
    return [y, of_x, late, *[lanes.gradients[n].clone() for n in names], *lanes.statistics.values()]


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize(("size", "m"), [(None, 5), (2, 6), (3, 8), (8, 5), (None, 2)])
@pytest.mark.parametrize("pixels", [(6, 5), (23, 25), ()])
def test_equals_torchs_layers(
    pixels: tuple[int, ...], size: int | None, m: int, shortcut: bool
) -> None:
    if not pixels and (shortcut or m == 2 or size == 2):
        pytest.skip("no shortcut without pixels; two values are normalised to ±1 whatever they are")
    x, g = 3 + noise(m, K * C, *pixels), noise(m, K * C, *pixels, seed=1)
    skip = None
    if shortcut:
        h, w = (2 * side - 1 for side in pixels)
        skip = Shortcut(noise(m, K * C // 2, h, w, seed=2), 2)
    found: list[list[Tensor]] = []
    for fused in (True, False):
        lanes, module = make_lanes(size)
        plain = stacked_norms.BatchNorm if size is None else stacked_norms.GhostNorm
        layer = (stacked_norms.FusedNorm if fused else plain)(lanes, "layer", module)
        found.append(passes(layer, lanes, x, g, skip))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=3e-5 * theirs.abs().max().item())


def test_a_large_mean_costs_no_digits() -> None:
    x, g = 1e3 + noise(4, K * C, 6, 6), noise(4, K * C, 6, 6, seed=1)
    lanes, module = make_lanes(None)
    layer = stacked_norms.FusedNorm(lanes, "layer", module)
    with torch.no_grad():
        layer.forward(x, True)
    exact = x.double()
    torch.testing.assert_close(
        layer.moments.mean[0].double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=0
    )
    invstd = (exact.var((0, 2, 3), correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(layer.moments.invstd[0].double(), invstd, rtol=1e-5, atol=0)
    assert g.isfinite().all()


def test_what_is_not_finite_stays_in_its_lane() -> None:
    x = noise(4, K * C, 3, 3)
    x[1, C] = torch.nan
    lanes, module = make_lanes(None)
    with torch.no_grad():
        y = stacked_norms.FusedNorm(lanes, "layer", module).forward(x, True)
    assert y[:, C].isnan().all()
    assert y[:, :C].isfinite().all()
    assert y[:, C + 1 :].isfinite().all()


def test_the_trial_before_first_use_passes() -> None:
    assert triton_norms.agrees(DEVICE)
