"""How rarely the loop engine looks for a divergence changes no result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines import loop
from smallbatch.engines.resident import Resident, load_resident
from smallbatch.protocol.outcome import RunResult
from smallbatch.protocol.run import Run
from smallbatch.records.checkpoints import Resumable
from tests.records.test_checkpoints import same, with_stops

LOOKS = [1, 3, 64]
ENDS = (5, 11, 17)  # updates at which an epoch ends: 23 images, m = 4


class _Failing(nn.Module):
    """Its loss is NaN at one update alone; the weights stay finite, later losses are finite too."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * 6 * 6, 3)
        self.at = at
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.fc(x.flatten(1))
        if not self.training:
            return logits
        self.count += 1
        return logits.masked_fill(self.count == self.at, math.nan)


def run_of(data: Dataset, lr: float = 2.0**-8, **settings: Any) -> Run:
    base: dict[str, Any] = {"model": "resnet8", "epochs": 3, "weight_decay": 1e-4}
    return Run(StudyConfig(**(base | settings)), data.meta.fingerprint, 4, lr, seed=1)


def resident(data: Dataset, *, augment: bool = False) -> Resident:
    return load_resident(data, augment=augment, device=torch.device("cpu"))


def train(
    patch: pytest.MonkeyPatch, run: Run, data: Resident, look_every: int, fails_at: int | None
) -> RunResult:
    patch.setitem(loop.LOOK_EVERY, "cpu", look_every)
    if fails_at is not None:
        torch.manual_seed(1)
        weights = _Failing(fails_at).state_dict()

        def build(*_args: object, **_settings: object) -> nn.Module:
            model = _Failing(fails_at)
            model.load_state_dict(weights)
            return model

        patch.setattr(loop, "build_model", build)
    return loop.train(run, data)


@pytest.mark.parametrize("look_every", LOOKS)
@pytest.mark.parametrize("at", [1, 2, 4, 5, 6, 7, 11, 16, 17])
def test_a_divergence_ends_the_run_there_however_late_it_is_seen(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch, look_every: int, at: int
) -> None:
    data, run = resident(noise), run_of(noise)
    whole = train(monkeypatch, run, data, 1, 0)
    found = train(monkeypatch, run, data, look_every, at)
    assert (found.outcome, found.diverged_at, found.weights) == ("diverged", at, {})
    assert set(found.final.values()) == {None}
    epochs = sum(end < at for end in ENDS)
    assert repr(found.rows[:-1]) == repr(whole.rows[:epochs])
    last = found.rows[-1]
    assert (last["epoch"], last["updates"]) == (epochs + 1, at)
    assert math.isnan(last["train_loss"])
    assert math.isnan(last["test_loss"])
    same({"": found}, {"": train(monkeypatch, run, data, 1, at)})


@pytest.mark.parametrize("lr", [2.0**-8, 2.0**6, 2.0**9, 2.0**100])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_results_are_equal_however_rarely_it_looks(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch, norm: str, lr: float
) -> None:
    data, run = resident(noise, augment=True), run_of(noise, lr, norm=norm, augment=True)
    expected, *others = (train(monkeypatch, run, data, every, None) for every in LOOKS)
    for other in others:
        same({"": other}, {"": expected})


@pytest.mark.parametrize("look_every", LOOKS)
@pytest.mark.parametrize("stops", [3, 8])
@pytest.mark.parametrize("at", [0, 2, 5, 7, 8, 17])
def test_a_run_goes_on_from_within_a_stretch(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_every: int, stops: int,
    at: int,
) -> None:  # fmt: skip
    data, run = resident(noise), run_of(noise)
    expected = train(monkeypatch, run, data, 1, at)
    monkeypatch.setitem(loop.LOOK_EVERY, "cpu", look_every)
    found, times = with_stops("loop", [run], data, tmp_path, stops)
    assert times >= (expected.diverged_at or ENDS[-1]) // (stops + 1)
    same(found, {run.hash: expected})


class _Waits(TorchDispatchMode):
    """Counts the operations for which the host would wait for a GPU."""

    names = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        self.count += func.overloadpacket.__name__ in self.names
        return func(*args, **(kwargs or {}))


class _Watching:
    """A keeper that notes how often the host had waited by the end of each update."""

    def __init__(self, waits: _Waits) -> None:
        self.waits, self.counts = waits, dict[int, int]()

    def begin(self, trainer: Resumable) -> None:
        pass

    def between(self, trainer: Any) -> None:
        self.counts.setdefault(trainer.update, self.waits.count)


def test_the_counter_sees_a_wait() -> None:
    with _Waits() as waits:
        torch.ones(1).sum()
        assert waits.count == 0
        torch.ones(()).item()
        bool(torch.ones(()))
    assert waits.count == 2


@pytest.mark.parametrize("norm", ["none", "batch", "ghost", "group"])
def test_nothing_waits_for_the_device_between_two_looks(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch, norm: str
) -> None:
    settings: dict[str, Any] = {
        "norm": norm,
        "augment": True,
        "bn_batch_size": 2 if norm == "ghost" else None,
    }
    data, run = resident(noise, augment=True), run_of(noise, **settings)
    place, placed = Resident.place, list[int]()

    def counted(self: Resident, examples: Any) -> torch.Tensor:
        placed.append(len(examples))
        return place(self, examples)

    monkeypatch.setattr(Resident, "place", counted)

    def counts(look_every: int) -> dict[int, int]:
        monkeypatch.setitem(loop.LOOK_EVERY, "cpu", look_every)
        with _Waits() as waits:
            keeper = _Watching(waits)
            loop.train(run, data, keeper=keeper)
        return keeper.counts

    rarely = counts(64)
    assert rarely[1] == rarely[5] < rarely[6] == rarely[11] < rarely[12] == rarely[17]
    assert placed == [5 * 4, 6 * 4, 6 * 4]  # one table for an epoch's batches
    always = counts(1)
    assert all(always[update] == always[update - 1] + 1 for update in (2, 3, 4, 5))
