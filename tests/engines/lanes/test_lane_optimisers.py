"""The stacked engine's optimisers against those of the loop engine, which are torch.optim's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.lanes.native import lanes as native_lanes
from smallbatch.protocol.run import Run
from tests.engines.lanes.test_trainer import (
    PRECISE,
    assert_near,
    noise_data,
    one_thread,
    study,
)
from tests.engines.test_optimisers import OPTIMISERS, SCHEDULES

__all__ = ["one_thread"]
OPTIMISERS = {name: value for name, value in OPTIMISERS.items() if name != "less momentum"}
MOVING = ("momentum", "nesterov", "adamw")  # those that keep moments
NORMS = {1: ("none", "group"), 7: ("batch", "ghost"), 32: ("batch", "group")}


def runs_of(norm: str, m: int, seeds: int = 1, **changes: Any) -> list[Run]:
    """Three learning rates; the first of AdamW moves a weight by about 0.01 at each update."""
    if norm == "ghost":
        changes["bn_batch_size"] = 4
    settings = study("resnet8", norm, augment=True, **changes)
    first = 2.0**-7 if settings.optimizer == "adamw" else 2.0**-5 / m
    return [Run(settings, "f", m, first / 4**i, seed) for i in range(3) for seed in range(seeds)]


def cases() -> list[Any]:
    """Every optimiser with every schedule; m and norm change from one to the next."""
    company = itertools.cycle((m, NORMS[m][i]) for i in range(2) for m in NORMS)
    pairs = itertools.product(OPTIMISERS, SCHEDULES)
    return [
        pytest.param(*pair, *place, id=" ".join(map(str, (*pair, *place))))
        for pair, place in zip(pairs, company, strict=False)
    ]


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize(("optimiser", "schedule", "m", "norm"), cases())
def test_updates_equal_the_loop_in_float64(
    optimiser: str, schedule: str, m: int, norm: str, by_torch: bool
) -> None:
    """Batches straddle epochs, with warm-up, milestones and weight decay."""
    data = noise_data(m + 6, augment=True, dtype=PRECISE)
    settings = OPTIMISERS[optimiser] | SCHEDULES[schedule]
    runs = runs_of(norm, m, epochs=12 if m > 1 else 2, **settings)[: 1 if m == 32 else 2]
    results = stacked.train_lanes(runs, data, dtype=PRECISE, by_torch=by_torch)
    for run, result in zip(runs, results, strict=True):
        assert result.rows[-1]["updates"] >= 14
        assert_near(result, loop.train(run, data, dtype=PRECISE), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, PRECISE])
@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("optimiser", MOVING)
def test_batches_in_parts_equal_the_loop(
    monkeypatch: pytest.MonkeyPatch, optimiser: str, parts: int, dtype: Any
) -> None:
    """Three lanes, the last of which shares its vectors with nobody."""
    monkeypatch.setattr(native_lanes, "parts_of_a_batch", lambda *_: parts)
    precise = dtype == PRECISE
    data = noise_data(19, size=8, augment=True, dtype=dtype)
    more = {"eps": 1e-3} if optimiser == "adamw" else {}  # noise is not scaled up to whole steps
    runs = runs_of("batch", 8, epochs=2, optimizer=optimiser, **more)
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if precise else {"rtol": 1e-3, "atol": 2e-5}
    for run, result in zip(runs, stacked.train_lanes(runs, data, dtype=dtype), strict=True):
        assert result.parameters % 8
        assert_near(result, loop.train(run, data, dtype=dtype), **tolerance)
