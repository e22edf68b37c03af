"""The stacked engine's optimisers against those of the loop engine, which are torch.optim's."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.lanes.native import lanes as native_lanes
from smallbatch.protocol.run import Run
from smallbatch.records.checkpoints import Resumable, State
from tests.engines.lanes.test_trainer import (
    PRECISE,
    assert_equal,
    assert_near,
    noise_data,
    one_thread,
    study,
)
from tests.engines.test_optimisers import OPTIMISERS as ALL
from tests.engines.test_optimisers import SCHEDULES

__all__ = ["one_thread"]
OPTIMISERS = {name: value for name, value in ALL.items() if name != "less momentum"}
MOVING = ("momentum", "nesterov", "adamw")  # those that keep moments
PLACES = (
    (1, "none"),
    (7, "batch"),
    (32, "group"),
    (1, "group"),
    (7, "ghost"),
    (32, "none"),
    (7, "none"),
)


def runs_of(norm: str, m: int, seeds: int = 1, **changes: Any) -> list[Run]:
    """Three learning rates; the first of AdamW moves a weight by about 0.01 at each update."""
    if norm == "ghost":
        changes["bn_batch_size"] = 4
    settings = study("resnet8", norm, augment=True, **changes)
    first = 2.0**-7 if settings.optimizer == "adamw" else 2.0**-5 / m
    return [Run(settings, "f", m, first / 4**i, seed) for i in range(3) for seed in range(seeds)]


def cases() -> list[Any]:
    """Every optimiser with every schedule; m and norm change from one to the next."""
    pairs = itertools.product(OPTIMISERS, SCHEDULES)
    return [
        pytest.param(*pair, *place, id=" ".join(map(str, (*pair, *place))))
        for pair, place in zip(pairs, itertools.cycle(PLACES), strict=False)
    ]


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize(("optimiser", "schedule", "m", "norm"), cases())
def test_updates_equal_the_loop_in_float64(
    optimiser: str, schedule: str, m: int, norm: str, by_torch: bool
) -> None:
    """Batches straddle epochs, with warm-up, milestones and weight decay."""
    # Ghost batches of 4 and 3 of the last layer's single pixels would amplify rounding.
    size = 8 if norm == "ghost" else 4
    data = noise_data(m + 6, size=size, augment=True, dtype=PRECISE)
    settings = OPTIMISERS[optimiser] | SCHEDULES[schedule]
    runs = runs_of(norm, m, epochs=7 if m > 1 else 1, **settings)[:1]
    results = stacked.train_lanes(runs, data, dtype=PRECISE, by_torch=by_torch)
    for run, result in zip(runs, results, strict=True):
        assert result.rows[-1]["updates"] >= 7
        assert_near(result, loop.train(run, data, dtype=PRECISE), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("optimiser", MOVING)
def test_lanes_by_vmap_equal_the_loop_in_float64(optimiser: str) -> None:
    data = noise_data(11, size=32, dtype=PRECISE)
    settings = study("test_resnet", "batch", optimizer=optimiser, schedule="cosine")
    runs = [Run(settings, "f", 4, base_lr, 0) for base_lr in (2.0**-9, 2.0**-11)]
    for run, result in zip(runs, stacked.train_lanes(runs, data, dtype=PRECISE), strict=True):
        assert_near(result, loop.train(run, data, dtype=PRECISE), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, PRECISE])
@pytest.mark.parametrize(("parts", "places"), [(2, 4), (4, 8), (8, 16), (8, 8)])
@pytest.mark.parametrize("optimiser", MOVING)
def test_batches_in_parts_equal_the_loop(
    monkeypatch: pytest.MonkeyPatch,
    with_places: Callable[[int], None],
    optimiser: str,
    parts: int,
    places: int,
    dtype: Any,
) -> None:
    """Three lanes, the last of which shares its vectors with nobody."""
    with_places(places)
    monkeypatch.setattr(native_lanes, "parts_of_a_batch", lambda *_: parts)
    precise = dtype == PRECISE
    data = noise_data(19, size=8, augment=True, dtype=dtype)
    more: dict[str, Any] = (
        {"eps": 1e-3} if optimiser == "adamw" else {}
    )  # noise is not scaled up to whole steps
    runs = runs_of("batch", 8, epochs=2, optimizer=optimiser, **more)
    tolerance = {"rtol": 1e-7, "atol": 1e-9} if precise else {"rtol": 1e-3, "atol": 2e-5}
    for run, result in zip(runs, stacked.train_lanes(runs, data, dtype=dtype), strict=True):
        assert result.parameters % 8
        assert_near(result, loop.train(run, data, dtype=dtype), **tolerance)


@pytest.mark.parametrize("m", [2, 33])
@pytest.mark.parametrize("optimiser", MOVING)
def test_a_lane_does_not_depend_on_its_neighbours(optimiser: str, m: int) -> None:
    """Alone, and beside one that diverges and is dropped: bit for bit the same."""
    data = noise_data(2 * m + 1, augment=True, dtype=torch.float32)
    runs = runs_of("none", m, seeds=3, optimizer=optimiser)
    runs.insert(1, dataclasses.replace(runs[0], base_lr=2.0**100))
    everyone = stacked.train_lanes(runs, data)
    assert everyone[1].outcome == "diverged"
    assert everyone[1].diverged_at == loop.train(runs[1], data).diverged_at
    for part in ([0], [9, 4], [1, 2, 3]):
        for i, result in zip(part, stacked.train_lanes([runs[i] for i in part], data), strict=True):
            assert_equal(result, everyone[i])


class StopError(Exception):
    pass


class StopsOnce:
    """Keeps the state after some updates and then stops; or gives it back."""

    def __init__(self, at: int, state: State | None = None) -> None:
        self.at, self.state = at, state

    def begin(self, trainer: Resumable) -> None:
        if self.state is not None:
            trainer.restore(self.state)

    def between(self, trainer: Resumable) -> None:
        state = trainer.state()
        if self.state is None and state.update >= self.at:
            self.state = dataclasses.replace(
                state, tensors={name: value.clone() for name, value in state.tensors.items()}
            )
            raise StopError


@pytest.mark.parametrize("by_torch", [False, True])
@pytest.mark.parametrize("optimiser", MOVING)
def test_a_resumed_training_ends_as_one_that_was_not_stopped(
    monkeypatch: pytest.MonkeyPatch, optimiser: str, by_torch: bool
) -> None:
    monkeypatch.setattr(native_lanes, "STRETCH", 0.0)  # a chance to stop after every update
    data = noise_data(25, size=4, dtype=torch.float32)
    runs = runs_of("batch", 8, optimizer=optimiser)
    whole = stacked.train_lanes(runs, data, by_torch=by_torch)
    keeper = StopsOnce(4)
    with pytest.raises(StopError):
        stacked.train_lanes(runs, data, by_torch=by_torch, keeper=keeper)
    assert keeper.state is not None
    assert sum(name.startswith("moment.") for name in keeper.state.tensors) == (
        2 if optimiser == "adamw" else 1
    )
    again = StopsOnce(0, keeper.state)
    for one, other in zip(
        whole, stacked.train_lanes(runs, data, by_torch=by_torch, keeper=again), strict=True
    ):
        assert_equal(one, other)


@pytest.mark.parametrize(
    ("lr", "more"),
    [(2.0**127, {}), (2.0**-7, {"eps": 1e-39, "weight_decay": 0.0})],
    ids=["largest rate", "smallest epsilon"],
)
def test_extremes_of_adamw_end_as_in_the_loop(lr: float, more: dict[str, Any]) -> None:
    """In float32, with weights whose gradient is exactly 0: images are black."""
    data = noise_data(17, size=4, dtype=torch.float32)
    data.train.images.zero_()
    run = Run(study("resnet8", "none", optimizer="adamw", **more), "f", 8, lr, 0)
    (result,) = stacked.train_lanes([run], data)
    expected = loop.train(run, data)
    assert (result.outcome, result.diverged_at) == (expected.outcome, expected.diverged_at)
