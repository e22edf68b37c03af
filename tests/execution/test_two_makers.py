"""A column of which another machine, engine or version trained some runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from smallbatch import machine
from smallbatch.config.params import ComputeConfig
from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.modules import PACKAGE
from smallbatch.protocol.column import Column, plan_column
from smallbatch.protocol.run import Run
from smallbatch.records.fence import plain
from smallbatch.report.environment import environment_table, mixed_hardware, read_timings
from tests.columns import place_and_train

TRAINED_ELSEWHERE = """
import sys
from pathlib import Path
from smallbatch import machine
from tests.execution.test_two_makers import column_of, train
from tests.noise import make_dataset

machine.processor = lambda: "fedcba9876543210"
machine.cpu_model = lambda: "Another CPU"
train(column_of(make_dataset(), seeds=1), Path(sys.argv[1]))
"""


class Log:
    """Counts the epochs that are trained, by run."""

    def __init__(self) -> None:
        self.epochs: Counter[str] = Counter()
        self.done: set[str] = set()

    def run_begun(self, run: Run, started: object) -> None: ...

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        self.epochs[run.hash] += 1

    def run_done(self, run: Run, outcome: str) -> None:
        self.done.add(run.hash)


def column_of(data: Dataset, *, seeds: int) -> Column:
    settings = StudyConfig(model="resnet8", norm="none", epochs=2, weight_decay=1e-4)
    return plan_column(
        "study", settings, data, batch_size=4, base_lrs=[2.0**-9], seeds=range(seeds)
    )


def train(column: Column, root: Path, **compute: Any) -> tuple[Path, Log]:
    out, log = root / "models/noise/study/m4", Log()
    given: dict[str, Any] = {"engine": "loop", "workers": 1, **compute}
    settings = ComputeConfig(**given)
    place_and_train(column, out, compute=settings, work=root / "work", observers=[log])
    return out, log


@pytest.fixture(scope="module")
def abroad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A column of one seed, trained by a process that has another processor, as far as it knows."""
    root = tmp_path_factory.mktemp("abroad")
    paths = os.pathsep.join([str(PACKAGE.parent), str(Path(__file__).parents[2])])
    subprocess.run(
        [sys.executable, "-c", TRAINED_ELSEWHERE, str(root)],
        env=os.environ | {"PYTHONPATH": paths}, check=True, timeout=120,
    )  # fmt: skip
    return root


@pytest.fixture
def brought(abroad: Path, tmp_path: Path) -> Path:
    """A copy of it, as a shared folder or a copied project has it."""
    return shutil.copytree(abroad, tmp_path / "here")


def timing_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "timing.json").read_text())


def test_runs_of_another_processor_are_kept_and_named(
    noise: Dataset, brought: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = column_of(noise, seeds=3)
    first, *rest = (run.hash for run in column.runs)
    record = (brought / "work" / first / "record").read_bytes()
    out, log = train(column, brought)
    assert log.epochs == dict.fromkeys(rest, 2)
    assert log.done == {first, *rest}
    assert (brought / "work" / first / "record").read_bytes() == record

    here, timing = machine.cpu_model(), timing_of(out)
    assert {"cpu", "hardware"}.isdisjoint(timing["environment"])
    assert "seconds" not in timing["column"]
    places = {run: clock["environment"] for run, clock in timing["runs"].items()}
    assert places[first]["cpu"] == "Another CPU"
    assert places[first]["hardware"].startswith("fedcba9876543210 ")
    for run in rest:
        assert places[run]["cpu"] == here
        assert places[run]["hardware"].startswith(f"{machine.processor()} ")
    assert timing["column"]["engine"] == "loop"  # of all alike
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "round" in line]
    assert line == (
        f"{out}: 2 runs on {here}, 1 run on Another CPU: between these, numbers round differently, "
        "and times cannot be compared"
    )
    timings = read_timings(brought / "models")
    assert mixed_hardware(timings)[0] == (
        f"{noise.meta.name}/study, m = 4: 2 runs on {here}, 1 run on Another CPU."
    )
    table = environment_table(timings)
    assert table is not None
    assert ["CPU", "several: not that of all runs"] in [[*row] for row in table.rows]
    # Found again, it is the same column, and says so again.
    again, log = train(column, brought)
    assert not log.epochs
    assert timing_of(again) == timing
    assert "1 run on Another CPU" in capsys.readouterr().err


def test_a_column_of_another_processor_alone_is_as_it_was_there(
    noise: Dataset, brought: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = timing_of(brought / "models/noise/study/m4")
    for compute in ({}, {"same_hardware": True}):
        out, log = train(column_of(noise, seeds=1), brought, **compute)
        assert not log.epochs
        assert timing_of(out) == before
        assert before["environment"]["cpu"] == "Another CPU"
    assert capsys.readouterr().err == ""


def test_same_hardware_trains_the_runs_of_another_processor_again(
    noise: Dataset, brought: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = column_of(noise, seeds=2)
    out, log = train(column, brought, same_hardware=True)
    assert log.epochs == {run.hash: 2 for run in column.runs}
    assert timing_of(out)["environment"]["cpu"] == machine.cpu_model()
    assert "round" not in capsys.readouterr().err


def test_runs_of_either_engine_are_mixed_unless_one_is_asked_for(
    noise: Dataset, tmp_path: Path, abroad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    column = column_of(noise, seeds=2)
    by_loop, by_stacked = (run.hash for run in column.runs)
    out, _ = train(column, tmp_path, engine="stacked", device="cpu")
    kernels = timing_of(out)["column"]["kernels"]
    shutil.copy(abroad / "work" / by_loop / "record", tmp_path / "work" / by_loop / "record")
    capsys.readouterr()
    out, log = train(column, tmp_path, engine="auto")
    assert not log.epochs
    timing = timing_of(out)
    assert {"engine", "kernels"}.isdisjoint(timing["column"])
    assert timing["column"]["device"] == "cpu"
    places = {run: clock["environment"] for run, clock in timing["runs"].items()}
    assert (places[by_loop]["engine"], places[by_loop]["kernels"]) == ("loop", None)
    assert (places[by_stacked]["engine"], places[by_stacked]["kernels"]) == ("stacked", kernels)
    said = capsys.readouterr().err
    assert "1 run on Another CPU by engine loop" in said
    assert f"1 run on {machine.cpu_model()} by engine stacked with {kernels} kernels" in said
    _, log = train(column, tmp_path, engine="stacked")
    assert set(log.epochs) == {by_loop}
    _, log = train(column, tmp_path, engine="loop")
    assert set(log.epochs) == {by_loop, by_stacked}


def test_another_build_of_torch_is_the_same_and_another_version_is_not(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column, real = column_of(noise, seeds=1), metadata.version
    train(column, tmp_path)
    torch = real("torch").partition("+")[0]
    for version, epochs in ((f"{torch}+cu999", 0), ("1.0.0", 2)):
        monkeypatch.setattr(
            metadata, "version", lambda name, it=version: it if name == "torch" else real(name)
        )
        assert train(column, tmp_path)[1].epochs.total() == epochs


def test_checkpoints_of_another_processor_are_named_and_not_used(
    noise: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Break(Log):
        def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
            raise KeyboardInterrupt

    column, out = column_of(noise, seeds=1), tmp_path / "models/noise/study/m4"
    compute = ComputeConfig(engine="loop", workers=1, checkpoint_seconds=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "processor", lambda: "fedcba9876543210")
        with pytest.raises(KeyboardInterrupt):
            place_and_train(
                column, out, compute=compute, work=tmp_path / "work", observers=[Break()]
            )
    (checkpoint, *_) = (tmp_path / "work").glob("*/*/*/*.checkpoint")
    capsys.readouterr()
    _, log = train(column, tmp_path)
    assert log.epochs.total() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not used" in line]
    maker = checkpoint.parents[1]
    folder = plain(maker.parent)  # this attempt has made it its own
    assert re.sub(r"\.2-[0-9a-f]{8}\.", ".", line) == (
        f"{out}: checkpoints in {folder} are not used ({maker.name}): "
        "other hardware, another engine or other code made them, and an unfinished run goes on "
        "only where it began"
    )
