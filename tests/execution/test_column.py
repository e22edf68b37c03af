from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from smallbatch import machine as environment
from smallbatch.config.params import ComputeConfig
from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines import made_by as sources
from smallbatch.engines import same_numbers
from smallbatch.engines.kinds import Engine
from smallbatch.engines.lanes import native, train_lanes
from smallbatch.engines.lanes.native import compile as kernels
from smallbatch.engines.lanes.native import compiler
from smallbatch.engines.made_by import made_by_on
from smallbatch.engines.resident import load_resident
from smallbatch.errors import TakenOver, UserError, WorkerLost
from smallbatch.execution import workers
from smallbatch.execution.column import _busiest, train_column
from smallbatch.placement.placement import Placement, place
from smallbatch.protocol.column import Column, plan_column
from smallbatch.protocol.run import Run
from smallbatch.records.lock import Lock
from smallbatch.records.schema import Clock
from tests.columns import place_and_train
from tests.noise import make_dataset

LRS = (2.0**-7, 2.0**-9, 2.0**6)  # the last diverges; not sorted on purpose


def plan(
    data: Dataset, *, base_lrs: tuple[float, ...] = LRS, seeds: int = 2, epochs: int = 3
) -> Column:
    settings = StudyConfig(model="resnet8", norm="none", epochs=epochs, weight_decay=1e-4)
    return plan_column("study", settings, data, batch_size=4, base_lrs=base_lrs, seeds=range(seeds))


def run_column(
    column: Column,
    root: Path,
    *,
    workers: int = 2,
    observers: Any = (),
    engine: Any = "loop",
    memory: Any = "auto",
) -> Path:
    out = root / "models" / "m4"
    compute = ComputeConfig(device="cpu", workers=workers, engine=engine, memory=memory)
    place_and_train(column, out, compute=compute, work=root / "work", observers=observers)
    return out


class _Log:
    def __init__(self) -> None:
        self.epochs: list[tuple[str, int]] = []
        self.done: dict[str, str] = {}

    def run_begun(self, run: Run, started: object) -> None: ...

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        self.epochs.append((run.hash, row["epoch"]))

    def run_done(self, run: Run, outcome: str) -> None:
        self.done[run.hash] = outcome


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_a_column_holds_every_run_and_every_outcome(
    noise: Dataset, tmp_path: Path, engine: str
) -> None:
    log = _Log()
    column = plan(noise)
    out = run_column(column, tmp_path, observers=[log], engine=engine)
    record = json.loads((out / "runs.json").read_text())
    runs = record["runs"]
    assert [(run["base_lr"], run["seed"]) for run in runs] == [
        (lr, seed) for lr in sorted(LRS) for seed in (0, 1)
    ]
    assert [run["outcome"] for run in runs] == ["finished"] * 4 + ["diverged"] * 2
    assert record["dataset"]["fingerprint"] == noise.meta.fingerprint
    assert record["settings"]["norm"] == "none"

    history = pd.read_parquet(out / "history.parquet")
    finished = history[history.outcome == "finished"]
    assert finished.groupby("run").epoch.apply(list).tolist() == [[1, 2, 3]] * 4
    diverged = history[history.outcome == "diverged"].groupby("run").updates.max()
    assert diverged.to_dict() == {run["run"]: run["diverged_at"] for run in runs[4:]}
    last = finished[finished.epoch == 3].set_index("run")
    for run in runs[:4]:
        assert run["final"]["test_accuracy"] == last.loc[run["run"], "test_accuracy"]
        assert run["updates"] == 3 * 23 // 4

    names = {key.split("/")[0] for key in load_file(out / "weights.safetensors")}
    assert names == {run["run"] for run in runs[:4]}
    assert log.done == {run["run"]: run["outcome"] for run in runs}
    assert sorted(log.epochs) == sorted(zip(history.run, history.epoch, strict=True))


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_results_do_not_depend_on_workers_memory_or_what_was_kept(
    noise: Dataset, tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte-identical with one worker, two, memory for one lane, and a column resumed half-way."""
    # So few native lanes would fill a vector of one worker, and leave nothing for the other.
    monkeypatch.setattr(Placement, "vector_of", lambda *_: 1)
    names = ("history.parquet", "weights.safetensors", "runs.json")
    one = run_column(plan(noise), tmp_path / "one", workers=1, engine=engine)
    two = run_column(plan(noise), tmp_path / "two", workers=2, engine=engine)
    tight = run_column(plan(noise), tmp_path / "tight", workers=1, engine=engine, memory=1e-9)
    run_column(plan(noise, base_lrs=LRS[:1], seeds=1), tmp_path / "resumed", engine=engine)
    log = _Log()
    resumed = run_column(plan(noise), tmp_path / "resumed", observers=[log], engine=engine)
    assert len({run for run, _ in log.epochs}) == 5  # the sixth was kept
    for name in names:
        for other in (two, tight, resumed):
            assert (one / name).read_bytes() == (other / name).read_bytes(), (name, other)


def test_the_engines_make_the_same_column(noise: Dataset, tmp_path: Path) -> None:
    """Same files, runs and outcomes; numbers within float32 rounding of 17 updates."""
    loop = run_column(plan(noise), tmp_path / "loop")
    stacked = run_column(plan(noise), tmp_path / "stacked", engine="stacked")
    histories = [pd.read_parquet(out / "history.parquet") for out in (loop, stacked)]
    pd.testing.assert_frame_equal(histories[0], histories[1], rtol=1e-4, atol=1e-5)
    mine, theirs = (load_file(out / "weights.safetensors") for out in (stacked, loop))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-5)
    records = [json.loads((out / "runs.json").read_text()) for out in (loop, stacked)]
    for record in records:
        del record["weights_sha256"]
        for run in record["runs"]:
            run["final"] = {key: value is None for key, value in run["final"].items()}
    assert records[0] == records[1]
    timings = [json.loads((out / "timing.json").read_text()) for out in (loop, stacked)]
    assert [timing["column"]["engine"] for timing in timings] == ["loop", "stacked"]
    # The lanes of two workers share their seconds: together no more than both had.
    seconds = sum(run["seconds"] for run in timings[1]["runs"].values())
    assert 0 < seconds <= 2 * timings[1]["column"]["seconds"]


def test_runs_of_one_engine_are_not_kept_for_another(noise: Dataset, tmp_path: Path) -> None:
    column = plan(noise, base_lrs=LRS[:1], seeds=1)
    run_column(column, tmp_path, engine="loop")
    log = _Log()
    run_column(column, tmp_path, engine="stacked", observers=[log])
    assert len(log.epochs) == 3


@pytest.mark.parametrize(
    ("model", "norm", "engine", "remark"),
    [
        ("test_resnet", "batch", "stacked", "test_resnet: lanes by torch.vmap"),
        ("test_vit_relpos", "none", "loop", "test_vit_relpos has no stacked layers and fails"),
    ],
)
def test_other_models_are_stacked_by_vmap_or_fall_back_in_one_line(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    model: str,
    norm: Any,
    engine: str,
    remark: str,
) -> None:
    data = make_dataset(n=12, test=8, size=32)
    settings = StudyConfig(model=model, norm=norm, epochs=1, weight_decay=0.0)
    column = plan_column("study", settings, data, batch_size=4, base_lrs=[2**-9], seeds=[0, 1])
    out = run_column(column, tmp_path, engine="stacked")
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"{out}: {remark}")
    assert json.loads((out / "timing.json").read_text())["column"]["engine"] == engine


def test_a_damaged_record_is_trained_again(noise: Dataset, tmp_path: Path) -> None:
    column = plan(noise, base_lrs=LRS[:1], seeds=1)
    first = run_column(column, tmp_path).joinpath("history.parquet").read_bytes()
    kept = tmp_path / "work" / column.runs[0].hash
    (kept / "record").write_bytes(b"torn")
    log = _Log()
    again = run_column(column, tmp_path, observers=[log])
    assert len(log.epochs) == 3
    assert (again / "history.parquet").read_bytes() == first


def test_what_the_clock_and_machine_decide_is_in_timing_alone(
    noise: Dataset, tmp_path: Path
) -> None:
    out = run_column(plan(noise, seeds=1), tmp_path)
    timing = json.loads((out / "timing.json").read_text())
    assert timing["column"]["seconds"] > 0
    assert timing["column"]["workers"] == 2
    assert timing["column"]["peak_memory_bytes"] > 10_000_000
    runs = json.loads((out / "runs.json").read_text())["runs"]
    assert set(timing["runs"]) == {run["run"] for run in runs}
    assert timing["environment"]["torch"]


MEASURED = ("seconds", "images_per_second", "peak_memory_bytes")  # of a column as a whole


def column_clock(out: Path) -> dict[str, Any]:
    return json.loads((out / "timing.json").read_text())["column"]


def test_a_column_brought_back_from_records_has_its_first_timing(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = plan(noise, base_lrs=LRS[:2], seeds=1)
    first = (run_column(column, tmp_path) / "timing.json").read_text()
    monkeypatch.setattr(environment, "git_state", lambda *_: ("later", False))
    out = tmp_path / "models/m4"
    for _ in range(2):
        shutil.rmtree(out)
        run_column(column, tmp_path, workers=1)
        assert (out / "timing.json").read_text() == first
    (kept,) = (tmp_path / "work").glob("*.timing")
    results = (out / "runs.json").read_bytes()
    for content in (None, b"torn"):
        kept.write_bytes(content) if content else kept.unlink()
        out = run_column(column, tmp_path)
        assert not set(MEASURED) & column_clock(out).keys()
        assert (out / "runs.json").read_bytes() == results


def test_a_kept_timing_is_that_of_the_same_trainings_alone(noise: Dataset, tmp_path: Path) -> None:
    """Of a column that has grown, what its first runs took is not the time of all."""
    column = plan(noise, base_lrs=LRS[:1], seeds=2)
    narrow = column_clock(run_column(column, tmp_path))
    assert set(MEASURED) <= narrow.keys()
    out = run_column(plan(noise, base_lrs=LRS[:2], seeds=2), tmp_path)
    wide = column_clock(out)
    assert not set(MEASURED) & wide.keys()
    clocks = json.loads((out / "timing.json").read_text())["runs"]
    first = min(run["started"] for run in clocks.values())
    assert narrow["started"] <= wide["started"] == f"{first[:19]}+00:00"


def test_the_time_of_a_column_that_was_interrupted_is_not_known(
    noise: Dataset, tmp_path: Path
) -> None:
    class Break(_Log):
        def run_begun(self, run: Run, started: object) -> None: ...

        def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    column, out = plan(noise, base_lrs=LRS[:1], seeds=1), tmp_path / "models/m4"
    compute = ComputeConfig(device="cpu", workers=1, engine="loop", checkpoint_seconds=1e-6)
    with pytest.raises(KeyboardInterrupt):
        place_and_train(column, out, compute=compute, work=tmp_path / "work", observers=[Break()])
    assert list((tmp_path / "work").glob("*/*/*/*.checkpoint"))
    assert not set(MEASURED) & column_clock(run_column(column, tmp_path)).keys()


def test_the_commit_of_a_column_is_that_it_began_with(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code is in memory from then on, whatever is checked out meanwhile."""
    real, commit = workers.train_all, ["old"]

    def train_all(*words: Any, **named: Any) -> int:
        peak = real(*words, **named)
        commit[0] = "new"
        return peak

    monkeypatch.setattr(workers, "train_all", train_all)
    monkeypatch.setattr(environment, "git_state", lambda *_: (commit[0], False))
    out = run_column(plan(noise, seeds=1), tmp_path)
    assert commit == ["new"]
    timing = json.loads((out / "timing.json").read_text())
    assert timing["environment"]["git_commit"] == "old"


def test_runs_that_a_widened_column_keeps_have_the_environment_they_were_trained_in(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "git_state", lambda *_: ("old", True))
    first = run_column(plan(noise, seeds=1), tmp_path, workers=1)
    kept = set(json.loads((first / "timing.json").read_text())["runs"])
    monkeypatch.setattr(environment, "git_state", lambda *_: ("new", False))
    timing = json.loads((run_column(plan(noise, seeds=2), tmp_path) / "timing.json").read_text())
    assert not {"git_commit", "git_dirty"} & timing["environment"].keys()
    assert timing["environment"]["torch"]
    assert "workers" not in timing["column"]
    for run, clock in timing["runs"].items():
        commit, dirty, workers = ("old", True, 1) if run in kept else ("new", False, 2)
        found = {"git_commit": commit, "git_dirty": dirty, "workers": workers}
        assert clock["environment"] == found
    shutil.rmtree(first)  # from records alone it comes out as it was
    again = run_column(plan(noise, seeds=1), tmp_path)
    timing = json.loads((again / "timing.json").read_text())
    assert timing["environment"]["git_commit"] == "old"
    assert timing["column"]["workers"] == 1


def test_a_batch_larger_than_the_training_set_is_refused(noise: Dataset) -> None:
    settings = StudyConfig(model="resnet8", epochs=1, weight_decay=0.0)
    with pytest.raises(UserError, match="found 24, allowed: at most the 23 training examples"):
        plan_column("study", settings, noise, batch_size=24, base_lrs=[0.1], seeds=[0])


def test_a_failing_worker_fails_the_column_and_leaves_nothing(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(workers, "train", broken)
    with pytest.raises(RuntimeError, match=r"base_lr=2\^-\d+ seed=0 failed:[\s\S]*no such luck"):
        run_column(plan(noise), tmp_path)
    assert not (tmp_path / "models").exists()
    assert multiprocessing.active_children() == []


def test_a_killed_worker_fails_the_column(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths: tuple[tuple[Callable[[], object], str], ...] = (
        (lambda: os._exit(9), "a training worker ended with status 9: finished runs"),
        (
            lambda: os.kill(os.getpid(), 9),
            r"was killed by signal 9: if memory ran out, set compute\.micro_batch below 4 and",
        ),
        (lambda: bytearray(2**62), "worker ran out of memory; set compute.micro_batch below 4 and"),
        (lambda: torch.empty(2**50), "worker ran out of memory; set compute.micro_batch below 4"),
    )
    for die, said in deaths:
        monkeypatch.setattr(workers, "train", lambda *_, die=die, **__: die())
        with pytest.raises(WorkerLost, match=said):
            run_column(plan(noise), tmp_path)


def test_a_batch_that_is_needed_whole_is_to_be_left_out(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "train", lambda *_, **__: bytearray(2**62))
    column = plan_column(
        "study", StudyConfig(model="resnet8", norm="batch", epochs=1, weight_decay=0.0), noise,
        batch_size=4, base_lrs=[0.1], seeds=[0],
    )  # fmt: skip
    said = "below 4 and run the same command again, or leave out batch size 4 where batch norm"
    with pytest.raises(WorkerLost, match=said):
        run_column(column, tmp_path)


def test_lanes_that_run_out_of_memory_are_to_be_fewer(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "train_lanes", lambda *_, **__: bytearray(2**62))
    with pytest.raises(WorkerLost, match=r"ran out of memory; set compute\.memory lower"):
        run_column(plan(noise), tmp_path, engine="stacked")


@pytest.mark.parametrize(("micro_batch", "said"), [(2, "micro_batch below 2 and"), (1, "memory")])
def test_parts_that_run_out_of_memory_are_to_be_smaller(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int, said: str
) -> None:
    def train(*_: object, **settings: object) -> None:
        assert settings["micro_batch"] == micro_batch
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(workers, "train", train)
    compute = ComputeConfig(device="cpu", engine="loop", micro_batch=micro_batch)
    with pytest.raises(WorkerLost, match=rf"out of memory; set compute\.{said}") as told:
        place_and_train(plan(noise), tmp_path / "m4", compute=compute, work=tmp_path / "work")
    assert "\n" not in str(told.value)


def test_results_that_cannot_be_put_in_place_leave_the_earlier_ones(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run_column(plan(noise, base_lrs=LRS[:1], seeds=1), tmp_path)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="Input/output error"):
        run_column(plan(noise, base_lrs=LRS[:1], seeds=2), tmp_path)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_is_not_of_a_column_is_not_replaced(noise: Dataset, tmp_path: Path) -> None:
    """It is told before anything is trained."""
    directory = tmp_path / "models/m4"
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("of the user")
    with pytest.raises(OSError, match=r"'notes\.txt' is none of the files to be replaced"):
        run_column(plan(noise, base_lrs=LRS[:1], seeds=1), tmp_path)
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]
    assert not [*(tmp_path / "work").glob("*/record")]


def test_who_lost_the_lock_keeps_nothing(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = itertools.count()

    def beat(_lock: Lock, *, now: bool = False) -> None:
        if next(beats) or now:
            raise TakenOver("somebody else has it")

    monkeypatch.setattr(Lock, "beat", beat)
    with pytest.raises(TakenOver):
        # Too long to end before the second beat, however late that comes.
        run_column(plan(noise, epochs=10_000), tmp_path)
    assert not list(tmp_path.rglob("*.checkpoint"))
    assert not list(tmp_path.rglob("record"))


def test_a_lock_lost_before_the_end_leaves_results_and_checkpoints_to_the_other(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run_column(plan(noise, base_lrs=LRS[:1], seeds=1), tmp_path)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def beat(_lock: Lock, *, now: bool = False) -> None:
        if now:
            raise TakenOver("somebody else has it")

    monkeypatch.setattr(Lock, "beat", beat)
    with pytest.raises(TakenOver):
        run_column(plan(noise, base_lrs=LRS[:1], seeds=2), tmp_path)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.rglob("*.checkpoints"))


def test_a_model_that_does_not_fit_is_refused_in_one_line(noise: Dataset, tmp_path: Path) -> None:
    settings = StudyConfig(model="resnet18", norm="none", epochs=1, weight_decay=0.0)
    column = plan_column("study", settings, noise, batch_size=4, base_lrs=[0.1], seeds=[0])
    with pytest.raises(UserError, match="norm: 'none' is not possible for timm's 'resnet18'"):
        run_column(column, tmp_path)


def test_runs_made_by_other_code_are_trained_again(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = plan(noise, base_lrs=LRS[:1], seeds=1)
    run_column(column, tmp_path)
    monkeypatch.setattr(sources, "code_digest", lambda _engine: "other")
    log = _Log()
    run_column(column, tmp_path, observers=[log])
    assert len(log.epochs) == 3


def test_runs_of_earlier_code_with_the_same_numbers_are_taken_over(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = plan(noise, base_lrs=LRS[:1], seeds=1)
    run_column(column, tmp_path)
    declared = tmp_path / "same_numbers.json"
    entry = {"now": "other", "earlier": [sources.code_digest("loop")]}
    declared.write_text(json.dumps(dict.fromkeys(("loop", "stacked"), entry)))
    monkeypatch.setattr(same_numbers, "FILE", declared)

    def trained(code: str) -> int:
        for module in (sources, same_numbers):
            monkeypatch.setattr(module, "code_digest", lambda _engine: code)
        same_numbers._earlier.cache_clear()  # pyright: ignore[reportPrivateUsage]
        log = _Log()
        run_column(column, tmp_path, observers=[log])
        return len(log.epochs)

    assert trained("other") == 0
    assert trained("a later change") == 3  # for which nobody has made sure
    same_numbers._earlier.cache_clear()  # pyright: ignore[reportPrivateUsage]


def test_what_is_declared_to_give_the_same_numbers_is_the_present_code() -> None:
    declared = json.loads(same_numbers.FILE.read_text())
    for engine, entry in declared.items():
        assert entry["now"] == sources.code_digest(engine), (
            "the engine has changed: compare it anew with benchmarks.same_numbers, or empty "
            "same_numbers.json if it gives other numbers"
        )


def test_other_kernels_compilers_and_processors_are_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made_by(engine: Engine = "stacked", **settings: Any) -> str:
        base: dict[str, Any] = {"model": "resnet8", "norm": "none"}
        study = StudyConfig(**(base | settings), epochs=1, weight_decay=0.0)
        return made_by_on(engine, "cpu", study)

    here, loop = made_by(), made_by("loop")
    assert kernels.version_of() in here
    assert made_by("loop") != here
    assert kernels.version_of(moments=True) in made_by(optimizer="momentum")
    assert kernels.version_of() not in made_by(precision="bf16") + made_by("loop")
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "identity", lambda: ("/usr/bin/c++", "another version"))
        assert made_by() != here
    with monkeypatch.context() as patch:
        patch.setattr(environment, "processor", lambda: "another")
        assert made_by("loop") != here
        others = {made_by(), made_by("loop"), made_by(precision="bf16")}
    assert not others & {here, made_by("loop"), made_by(precision="bf16")}
    with monkeypatch.context() as patch:
        patch.setenv("DNNL_MAX_CPU_ISA", "SSE41")
        assert made_by("loop") != loop
    with monkeypatch.context() as patch:
        patch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
        assert made_by() != here
    monkeypatch.setattr(native, "available", lambda *_: False)
    assert made_by() != here


@pytest.fixture
def kernels_anew() -> Generator[Callable[[], None]]:
    """Forget, as a new process begins, what kernels there are; and again after the test."""

    def forget() -> None:
        for remembered in (kernels._found, compiler.identity):
            remembered.cache_clear()

    yield forget
    forget()


def results_of(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in ("history.parquet", "weights.safetensors")]


def test_a_record_copied_to_another_run_is_trained_again(
    noise: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = plan(noise, base_lrs=LRS[:2], seeds=1)
    before, work = results_of(run_column(column, tmp_path)), tmp_path / "work"
    other, own = (work / run.hash / "record" for run in column.runs)
    shutil.copy(other, own)
    shutil.rmtree(tmp_path / "models")
    log = _Log()
    assert results_of(run_column(column, tmp_path, observers=[log])) == before
    assert {name for name, _ in log.epochs} == {own.parent.name}
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert lines == [f"{own}: left out: it is of {other.parent.name!r}, which is another"]


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_compiler_that_fails_at_first_leaves_a_column_to_torch_as_a_whole(
    noise: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kernels_anew: Callable[[], None],
    calls: int,
) -> None:
    if compiler.compiler() is None:
        pytest.skip("needs a C++ compiler")
    count, cxx = tmp_path / "count", tmp_path / "cxx"
    cxx.write_text(
        f'#!/bin/bash\necho call >> "{count}"\n[ $(wc -l < "{count}") -le {calls} ] && kill -9 $$\n'
        f'exec {compiler.compiler()} "$@"\n'
    )
    cxx.chmod(0o755)
    column = plan(noise, base_lrs=LRS[:2], seeds=1)
    data = load_resident(noise, augment=False, device=torch.device("cpu"))
    expected = train_lanes(column.runs, data, by_torch=True)
    monkeypatch.setenv("CXX", str(cxx))
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    kernels_anew()
    out = run_column(column, tmp_path, engine="stacked", memory=1e-9)  # each run by itself
    weights = load_file(out / "weights.safetensors")
    for run, result in zip(column.runs, expected, strict=True):
        for name, value in result.weights.items():
            np.testing.assert_allclose(weights[f"{run.hash}/{name}"], value, rtol=1e-5, atol=1e-6)
    assert json.loads((out / "timing.json").read_text())["column"]["kernels"] == "torch"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "lanes by torch" in line]
    assert line.endswith(f"without the kernels in C++: {cxx} fails: killed by signal 9")
    assert count.read_text() == "call\n"
    made_by = place(column, ComputeConfig(device="cpu", engine="stacked"), keep=False).made_by
    assert made_by.endswith(" torch")


def test_workers_compute_by_the_kernels_that_were_decided_for(noise: Dataset) -> None:
    column = plan(noise, base_lrs=LRS[:1], seeds=1)
    data = load_resident(noise, augment=False, device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="native kernels others are not to be had"):
        train_lanes(column.runs, data, native="others")


def test_history_numbers_are_plain(noise: Dataset, tmp_path: Path) -> None:
    history = pd.read_parquet(run_column(plan(noise), tmp_path) / "history.parquet")
    kinds = {name: dtype.kind for name, dtype in history.dtypes.items()}
    for name in ("batch_size", "seed", "epoch", "updates"):
        assert kinds[name] == "i", name
    for name in ("base_lr", "lr", "train_loss", "test_loss", "test_accuracy"):
        assert kinds[name] == "f", name
    assert np.isnan(history.validation_accuracy).all()


@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_weights_are_left_out_of_records_and_files_on_request(
    noise: Dataset, tmp_path: Path, engine: Engine
) -> None:
    column = plan(noise, base_lrs=LRS[:1])
    compute = ComputeConfig(device="cpu", engine=engine)
    kept, without = (tmp_path / name / "m4" for name in ("kept", "without"))
    for out, keep in ((kept, True), (without, False)):
        train_column(
            column, out, placement=place(column, compute), checkpoint_seconds=60,
            work=out.parent / "work", keep_weights=keep,
        )  # fmt: skip
    assert len(load_file(kept / "weights.safetensors")) > 0
    assert load_file(without / "weights.safetensors") == {}
    assert (without / "history.parquet").read_bytes() == (kept / "history.parquet").read_bytes()
    one, other = (json.loads((it / "runs.json").read_text()) for it in (kept, without))
    assert one["runs"] == other["runs"]


@pytest.mark.parametrize(
    ("chunks", "workers", "seconds"),
    [
        ([["a", "b"], ["c"]], 2, 6.0),  # the first worker is busy when the other has ended
        ([["a"], ["b"], ["c"]], 2, 4.5),  # who is free takes the next
        ([["a", "b", "c"]], 2, 9.0),
        ([], 3, 3.0),
    ],
)
def test_a_column_takes_as_long_as_its_busiest_worker(
    chunks: list[list[str]], workers: int, seconds: float
) -> None:
    then = "2026-01-02T03:04:05+00:00"
    clocks = {
        name: Clock(started=then, ended=then, seconds=own, images_per_second=1.0)
        for name, own in (("a", 2.0), ("b", 4.0), ("c", 3.0))
    }
    assert _busiest(chunks, clocks, workers) == seconds
