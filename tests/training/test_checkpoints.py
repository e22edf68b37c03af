"""Stopping anywhere and going on: not a bit differs from a training that nobody stopped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smallbatch import durable
from smallbatch.config import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.errors import Stopping
from smallbatch.training import checkpoints, loop, stacked
from smallbatch.training.checkpoints import Checkpoints, State
from smallbatch.training.loop import RunResult
from smallbatch.training.protocol import Run
from smallbatch.training.resident import Resident, load_resident
from smallbatch.training.stacked.native import lanes as native_lanes
from tests.training.conftest import make_dataset

# 23 examples, m = 4, 3 epochs: 17 updates; an evaluation after updates 5, 11 and 17, in which it
# may be stopped too and then begins again.
LRS = (2.0**-8, 2.0**6)  # the second diverges


def runs_of(data: Dataset, lrs: tuple[float, ...] = LRS, **settings: Any) -> list[Run]:
    base: dict[str, Any] = {"model": "resnet8", "epochs": 3, "weight_decay": 1e-4}
    study = StudyConfig(**(base | settings))
    return [Run(study, data.meta.fingerprint, 4, lr, seed) for lr in lrs for seed in (0, 1)]


def resident(data: Dataset, *, augment: bool = False) -> Resident:
    return load_resident(data, augment=augment, device=torch.device("cpu"))


def after(calls: int) -> Callable[[], bool]:
    """Asks for an end at the given call."""
    left = itertools.count(calls, -1)
    return lambda: next(left) <= 1


def train(
    engine: str, runs: list[Run], data: Resident, kept: Checkpoints | None
) -> dict[str, RunResult]:
    if engine == "loop":
        return {run.hash: loop.train(run, data, keeper=kept) for run in runs}
    found: dict[str, RunResult] = {}
    alive = [run for run in runs if kept is None or not kept.saved or run.hash in kept.saved.runs]

    def keep(run: Run, result: RunResult, _seconds: float) -> None:
        found[run.hash] = result

    try:
        stacked.train_lanes(alive, data, on_end=keep, keeper=kept)
    except Stopping as stopping:
        stopping.args = (found,)
        raise
    return found


def with_stops(
    engine: str, runs: list[Run], data: Resident, folder: Path, stops: int
) -> tuple[dict[str, RunResult], int]:
    """Trains, stopping at every ``stops``-th opportunity; the results and how often it stopped."""
    found: dict[str, RunResult] = {}
    for attempt in range(20):
        kept = Checkpoints(folder, 1e9, after(stops))
        try:
            return found | train(engine, runs, data, kept), attempt
        except Stopping as stopping:
            found |= stopping.args[0] if stopping.args else {}
    raise AssertionError("no progress")


def same(ours: dict[str, RunResult], theirs: dict[str, RunResult]) -> None:
    assert ours.keys() == theirs.keys()
    for name, mine in ours.items():
        other = theirs[name]
        assert repr(mine.rows) == repr(other.rows)  # repr: NaN equals itself
        assert (mine.outcome, mine.diverged_at) == (other.outcome, other.diverged_at)
        assert repr(mine.final) == repr(other.final)
        assert mine.weights.keys() == other.weights.keys()
        for key, value in mine.weights.items():
            assert value.numpy().tobytes() == other.weights[key].numpy().tobytes(), key


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update at a time, so that there are many opportunities to stop."""
    monkeypatch.setattr(native_lanes, "STRETCH", 0.0)


@pytest.mark.parametrize(
    ("engine", "settings", "stops"),
    [
        ("loop", {"norm": "batch", "augment": True}, 3),
        ("loop", {"norm": "none", "warmup": 0.2}, 7),
        ("stacked", {"norm": "batch", "augment": True}, 5),
        ("stacked", {"norm": "ghost", "bn_batch_size": 2, "warmup": 0.2}, 5),
        ("stacked", {"norm": "none"}, 7),
    ],
)
def test_stopped_anywhere_it_goes_on_bit_for_bit(
    tmp_path: Path, noise: Dataset, engine: str, settings: dict[str, Any], stops: int
) -> None:
    data = resident(noise, augment=settings.get("augment", False))
    runs = runs_of(noise, **settings)
    groups = [[run] for run in runs[::2]] if engine == "loop" else [runs]
    for i, group in enumerate(groups):
        expected = train(engine, group, data, None)
        found, times = with_stops(engine, group, data, tmp_path / str(i), stops)
        assert times >= max(len(result.rows) for result in expected.values()) * 17 // 3 // stops
        same(found, expected)


class _Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * 6 * 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.dropout(x.flatten(1), 0.5, self.training))


def test_random_numbers_of_the_model_go_on_too(
    tmp_path: Path, noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "build_model", lambda *_, **__: _Dropout())
    data, (run, other) = resident(noise), runs_of(noise, (2.0**-8,))
    expected = train("loop", [run], data, None)
    assert torch.any(
        expected[run.hash].weights["fc.weight"]
        != train("loop", [other], data, None)[other.hash].weights["fc.weight"]
    )
    same(with_stops("loop", [run], data, tmp_path, 3)[0], expected)


def test_models_under_vmap_go_on_bit_for_bit(tmp_path: Path) -> None:
    noise = make_dataset(n=12, test=8, size=32)
    data = resident(noise)
    runs = runs_of(noise, (2.0**-9, 2.0**12), model="test_resnet", norm="batch", epochs=2)
    expected = train("stacked", runs, data, None)
    same(with_stops("stacked", runs, data, tmp_path, 3)[0], expected)


def state(update: int) -> State:
    return State(("a", "b"), update, {"theta": torch.arange(3.0) + update}, {"rows": []})


class _Trainer:
    def __init__(self) -> None:
        self.update = 0
        self.restored: State | None = None

    def state(self) -> State:
        return state(self.update)

    def restore(self, state: State) -> None:
        self.restored = state


def write(folder: Path, *updates: int) -> None:
    trainer, kept = _Trainer(), Checkpoints(folder, 1e-9, lambda: False)
    for trainer.update in updates:
        kept.between(trainer)


def found(folder: Path) -> int | None:
    trainer = _Trainer()
    Checkpoints(folder, 60, lambda: False).begin(trainer)
    return trainer.restored.update if trainer.restored else None


def test_the_last_two_are_kept_and_a_damaged_one_falls_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 1, 2, 30)
    newest, older = sorted(tmp_path.iterdir(), reverse=True)
    assert found(tmp_path) == 30
    assert capsys.readouterr().err == ""
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1  # one bit of the weights
    newest.write_bytes(data)
    assert found(tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{newest}: damaged: its checksum does not match" in line
    assert "going back to the checkpoint before it" in line
    write(tmp_path, 3, 4)  # the damaged one, with its higher number, does not stand in the way
    assert found(tmp_path) == 4
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    assert found(tmp_path) is None
    assert older.parent == tmp_path


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = {
        "nan": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "view": torch.arange(12.0).view(3, 4).T,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "shared": torch.ones(2),
    }
    tensors["alias"] = tensors["shared"]
    content = {"rows": [{"loss": float("nan"), "big": 0.1 + 0.2, "n": 2**60}], "é": None}
    durable.seal(tmp_path / "file", tensors, content)
    back, again = durable.unseal(tmp_path / "file")
    assert repr(again) == repr(content)
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype
        assert back[name].shape == value.shape
        assert back[name].numpy().tobytes() == value.contiguous().numpy().tobytes()


def test_checkpoints_come_with_the_interval_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    stopping = [False]
    kept, trainer = Checkpoints(tmp_path, 60.0, lambda: stopping[0]), _Trainer()
    written: list[int] = []
    for trainer.update in range(1, 200):  # a second each
        now[0] += 1
        before = set(tmp_path.iterdir())
        kept.between(trainer)
        if set(tmp_path.iterdir()) != before:
            written.append(trainer.update)
    assert written == [60, 120, 180]
    stopping[0] = True
    with pytest.raises(Stopping):
        kept.between(trainer)
    assert found(tmp_path) == 199
    again = Checkpoints(tmp_path, 60.0, lambda: False)
    assert again.seconds == 199
    kept.clear()
    assert not tmp_path.exists()


def test_a_full_disk_costs_the_checkpoint_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 5)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "fsync", full)
        write(tmp_path, 6, 7)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written (No space left on device); training goes on without it" in line
    assert [path.name for path in tmp_path.iterdir()] == ["000000000005.checkpoint"]
    assert found(tmp_path) == 5
