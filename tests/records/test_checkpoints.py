"""Stopping anywhere and going on: not a bit differs from a training that nobody stopped."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smallbatch import durable, private
from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.lanes import trainer as stacked_trainer
from smallbatch.engines.lanes.native import lanes as native_lanes
from smallbatch.engines.lanes.torch import lanes as torch_lanes
from smallbatch.engines.resident import Resident, load_resident
from smallbatch.errors import Stopping, UserError
from smallbatch.protocol.outcome import RunResult
from smallbatch.protocol.run import Run
from smallbatch.records import checkpoints
from smallbatch.records.checkpoints import Checkpoints, ChunkPlan, State
from smallbatch.records.files import load_record
from tests.noise import make_dataset
from tests.users import NOBODY, needs_two_users

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
    engine: str,
    runs: list[Run],
    data: Resident,
    kept: Checkpoints | None,
    before: Collection[str] = (),
) -> dict[str, RunResult]:
    if engine == "loop":
        return {run.hash: loop.train(run, data, keeper=kept) for run in runs}
    found: dict[str, RunResult] = {}
    alive = [run for run in runs if kept is None or not kept.saved or run.hash in kept.saved.runs]

    def keep(run: Run, result: RunResult, _seconds: float) -> None:
        found[run.hash] = result

    try:
        recorded = [run for run in alive if run.hash in before]
        stacked.train_lanes(alive, data, on_end=keep, keeper=kept, recorded=recorded)
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
            with pytest.MonkeyPatch.context() as patch:
                # One update at a time, so that there are many opportunities to stop.
                patch.setattr(native_lanes, "STRETCH", 0.0)
                return found | train(engine, runs, data, kept, found), attempt
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


def test_final_scores_are_not_computed_again(
    tmp_path: Path, noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, runs = resident(noise), runs_of(noise, (2.0**-8,), norm="batch")
    scores, scored = stacked_trainer._population_scores, list[nn.Module]()

    def counted(model: nn.Module, data: Resident) -> tuple[float, float]:
        scored.append(model)
        return scores(model, data)

    monkeypatch.setattr(stacked_trainer, "_population_scores", counted)
    with pytest.raises(Stopping) as stopping:
        train("stacked", runs, data, Checkpoints(tmp_path, 1e9, lambda: len(scored) == 1))
    found: dict[str, RunResult] = stopping.value.args[0]
    assert len(found) == 1
    rest = train("stacked", runs, data, Checkpoints(tmp_path, 1e9, lambda: False), found)
    assert found.keys() | rest.keys() == {run.hash for run in runs}
    assert len(scored) == len(runs)


def test_captured_updates_come_in_stretches(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, runs = resident(noise), runs_of(noise, (2.0**-8,), norm="batch")
    expected = stacked.train_lanes(runs, data, by_torch=True)
    advance, done = torch_lanes.TorchLanes.advance, list[int]()

    def counted(self: Any, first: int, last: int) -> int:
        done.append(advance(self, first, last))
        return done[-1]

    monkeypatch.setattr(torch_lanes.TorchLanes, "advance", counted)
    monkeypatch.setattr(torch_lanes, "CAPTURED", {"cpu"})
    monkeypatch.setattr(torch_lanes, "capture", lambda step, _state: step)
    for seconds, stretches in ((0.0, [1] * 17), (1e9, [1, 4, 6, 6])):
        monkeypatch.setattr(torch_lanes, "STRETCH", seconds)
        done.clear()
        found = stacked.train_lanes(runs, data, by_torch=True)
        assert done == stretches
        assert repr([result.rows for result in found]) == repr([it.rows for it in expected])


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


def test_what_cannot_be_read_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1, 2)
    kept = ChunkPlan(tmp_path / "plan")
    kept.write([["a"]])

    def failing(_path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(private, "read_shared", failing)
        for read in (lambda: found(tmp_path), kept.read, lambda: load_record(tmp_path, ["code"])):
            with pytest.raises(OSError, match="Input/output error"):
                read()
    assert found(tmp_path) == 2
    assert kept.read() == [["a"]]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
     torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")],
)  # fmt: skip
def test_memory_that_runs_out_spares_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    write(tmp_path, 1, 2)

    def failing(_self: _Trainer, _state: State) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "restore", failing)
        with pytest.raises(type(error)):
            found(tmp_path)
    assert found(tmp_path) == 2


def test_a_damaged_plan_falls_back_to_its_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ChunkPlan(tmp_path)
    assert kept.read() == []
    kept.write([["a", "b"], ["c"]])
    (tmp_path / "plan").write_bytes(b"damaged")
    assert kept.read() == [["a", "b"], ["c"]]
    (line,) = capsys.readouterr().err.splitlines()
    assert f"warning: {tmp_path / 'plan'}: damaged: its checksum does not match" in line
    (tmp_path / "plan").unlink()
    assert kept.read() == [["a", "b"], ["c"]]


@pytest.mark.parametrize("place", ["a/other", "other/chunk"])
def test_a_checkpoint_and_a_plan_of_other_runs_or_code_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    own, other = tmp_path / "a/chunk", tmp_path / place
    ChunkPlan(own).write([["a", "b"]])
    write(own, 1)
    shutil.copytree(own, other)
    assert (found(own), ChunkPlan(own).read()) == (1, [["a", "b"]])
    assert capsys.readouterr().err == ""
    assert (found(other), ChunkPlan(other).read()) == (None, [])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # two copies of a plan
    assert all("it is of 'a/chunk', which is another" in line for line in lines)


def test_a_checkpoint_that_is_a_link_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 1, 2)
    newest, older = sorted(tmp_path.iterdir(), reverse=True)
    newest.rename(tmp_path / "elsewhere")
    newest.symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "9.checkpoint")
    (tmp_path / "8.checkpoint").mkdir()
    assert found(tmp_path) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert (tmp_path / "elsewhere").exists()
    write(tmp_path, 3, 4, 5)
    assert found(tmp_path) == 5
    assert not older.exists()


@needs_two_users
@pytest.mark.parametrize("level", ["chunk", "version"])
def test_checkpoints_are_not_kept_behind_a_link_of_another_user(tmp_path: Path, level: str) -> None:
    """Else what lies in a private folder of this user would be removed and overwritten."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    for name in ("thesis.checkpoint", "plan"):
        (private / name).write_bytes(b"precious")
    (private / "chunk").mkdir()
    version = tmp_path / "version"
    if level == "chunk":
        version.mkdir()
    link = version / "chunk" if level == "chunk" else version
    link.symlink_to(private)
    os.lchown(link, NOBODY, NOBODY)
    kept, folder = ChunkPlan(version), version / "chunk"
    tries: list[Callable[[], object]] = [lambda: found(folder)]
    if level == "version":
        tries += [kept.read, lambda: kept.write([["a"]])]
    for attempt in tries:
        with pytest.raises(UserError, match="a link that another user made"):
            attempt()
    assert (private / "thesis.checkpoint").read_bytes() == b"precious"
    assert (private / "plan").read_bytes() == b"precious"
    assert (private / "chunk").is_dir()


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_checkpoint_of_other_code_is_removed_and_says_so(
    tmp_path: Path, noise: Dataset, engine: str
) -> None:
    data, runs = resident(noise), runs_of(noise, (2.0**-8,))[:1]
    with pytest.raises(Stopping):
        train(engine, runs, data, Checkpoints(tmp_path, 1e9, after(3)))
    (path,) = tmp_path.iterdir()
    of = checkpoints._name(tmp_path)
    tensors, content = durable.unseal(path.read_bytes(), of)
    for changed in ({"theta": tensors["theta"]}, {**tensors, "theta": torch.zeros(3)}):
        durable.seal(path, changed, content, of)
        with pytest.raises(UserError, match="its checkpoints are not of this code"):
            train(engine, runs, data, Checkpoints(tmp_path, 1e9, lambda: False))
        assert not path.exists()
        tmp_path.mkdir(exist_ok=True)
    train(engine, runs, data, Checkpoints(tmp_path, 1e9, lambda: False))


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
    durable.seal(tmp_path / "file", tensors, content, "it")
    back, again = durable.unseal((tmp_path / "file").read_bytes(), "it")
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


def test_a_file_system_that_syncs_no_folders_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = durable.os.fsync

    def no_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", no_folders)
    durable.write(tmp_path / "file", b"content")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"content"]


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
