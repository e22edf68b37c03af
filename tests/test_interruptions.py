"""Trainings killed, interrupted and out of time, in real processes: nothing lost, nothing else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from smallbatch.errors import Stopped
from smallbatch.execution import watch
from tests.columns import checkpoints
from tests.project import ROOT, UNTRACKED, Project

pytestmark = pytest.mark.slow

PARAMS = """
dataset: {{name: digits, source: digits, subset: 400, test_subset: 100}}
grid: {{studies: [bn], dependent: [], batch_sizes: [4], base_lrs: [1], seeds: 2}}
advise: {{studies: []}}
studies:
  bn:
    {{model: resnet8, norm: batch, epochs: 6, weight_decay: 0.0001,
      optimizer: adamw, schedule: cosine, lrs: [2^-10, 2^100]}}
compute: {{device: cpu, engine: {engine}, checkpoint_seconds: 0.3}}
"""
LONG = (
    PARAMS.format(engine="stacked")
    .replace("epochs: 6", "epochs: 5000")
    .replace("compute: {", "compute: {workers: 1, ")  # it leaves the other cores to other tests
)
GOES_ON = re.compile(
    r"runs? goe?s? on from (its|their) checkpoint"
)  # how many: so far as it is fast
RESULTS = ("history.parquet", "weights.safetensors", "runs.json")


class Folder:
    """A working folder in which to train."""

    def __init__(self, root: Path, engine: str) -> None:
        self.root = root
        (root / "params.yaml").write_text(PARAMS.format(engine=engine))

    def environment(self) -> dict[str, str]:
        # How the real mirror ends with its trainer: tests/tracking/test_live.py.
        return {**os.environ, "PYTHONPATH": f"{ROOT}/src{os.pathsep}{UNTRACKED}"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "smallbatch", *words],
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def call(self, *words: str) -> str:
        process = self.start(*words)
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return out + said

    def checkpoints(self) -> set[Path]:
        return checkpoints(self.root)

    def results(self) -> list[bytes]:
        (column,) = self.root.glob("models/digits/*/m4")
        return [(column / name).read_bytes() for name in RESULTS]


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_killed_interrupted_and_out_of_time_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "stacked")  # both engines: benchmarks/faults
    folder.call("prepare")

    killed = folder.start("train", "bn", "4")
    wait_until(folder.checkpoints)
    workers = children(killed.pid)[1:]  # the first mirrors to MLflow and leaves in its own time
    killed.kill()
    killed.communicate(timeout=10)
    assert workers
    wait_until(lambda: all(map(gone, workers)), 5)
    assert folder.checkpoints()

    interrupted = folder.start("train", "bn", "4")
    before = set(folder.checkpoints())
    wait_until(lambda: set(folder.checkpoints()) - before)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal sends it, to the workers too
    asked = time.monotonic()
    _, said = interrupted.communicate(timeout=10)
    assert time.monotonic() - asked < 5
    assert interrupted.returncode == 75
    assert GOES_ON.search(said)
    assert "interrupted by SIGINT: finished runs and checkpoints are kept" in said
    assert "Traceback" not in said

    terminated = folder.start("train", "bn", "4")
    wait_until(lambda: children(terminated.pid))  # it may still be importing torch
    os.kill(terminated.pid, signal.SIGTERM)
    asked = time.monotonic()
    _, said = terminated.communicate(timeout=10)
    assert time.monotonic() - asked < 5
    assert terminated.returncode == 75
    assert "interrupted by SIGTERM" in said

    hurried = folder.start("train", "bn", "4", "--time-limit", "0.1s")
    _, said = hurried.communicate(timeout=60)
    assert hurried.returncode == 76
    assert "stopped before the time limit of 0.1 s" in said
    assert not list(tmp_path.glob("models/**/*"))

    assert GOES_ON.search(folder.call("train", "bn", "4"))
    resumed = folder.results()
    assert not folder.checkpoints()
    shutil.rmtree(tmp_path / "models")
    shutil.rmtree(tmp_path / ".smallbatch/work")
    assert not GOES_ON.search(folder.call("train", "bn", "4"))
    assert folder.results() == resumed


def test_a_time_limit_holds_whatever_is_under_way(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "stacked")
    (tmp_path / "params.yaml").write_text(LONG)
    folder.call("prepare")
    limit = 18  # a busy machine takes several seconds until its first checkpoint
    asleep = (
        "import time; from smallbatch.execution.watch import Watch\n"
        f"with Watch({limit}): time.sleep(60)"
    )
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", asleep], env=folder.environment()) as deaf:
        training = folder.start("train", "bn", "4", "--time-limit", f"{limit}s")
        _, said = training.communicate(timeout=60)
        assert limit - 5 <= time.monotonic() - started < limit + 1
        assert training.returncode == 76, said
        assert f"stopped before the time limit of {limit} s" in said
        assert folder.checkpoints()
        assert deaf.wait(30) == 76
        assert time.monotonic() - started < limit + 2


def test_under_dvc_a_time_limit_counts_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path, LONG, tracked=False)
    monkeypatch.setenv("SMALLBATCH_TIME_LIMIT", "8s")
    started = time.monotonic()
    with project.start("dvc", "repro", "train") as dvc:
        said = dvc.communicate(timeout=60)[0]
    assert time.monotonic() - started < 28  # dvc takes its time to end, on a busy machine seconds
    assert dvc.returncode == 255  # dvc's own, whatever a stage's is
    assert "stopped before the time limit of 8 s" in said


def test_an_orphan_of_dvc_stops_before_it_has_seen_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "train@bn-4")
    monkeypatch.setattr(watch.os, "getppid", lambda: 1)
    with watch.Watch() as watching, pytest.raises(Stopped, match="because dvc is gone") as caught:
        watching.check()
    assert caught.value.exit_code == 75


def test_a_training_ends_with_the_dvc_that_started_it(tmp_path: Path) -> None:
    project = Project(tmp_path, PARAMS.format(engine="stacked"), tracked=False)
    kept = Folder(tmp_path, "stacked")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path}/src{os.pathsep}{UNTRACKED}",
    }
    command = ["dvc", "repro", "train"]
    with (tmp_path / "log").open("wb") as log:
        dvc = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        wait_until(kept.checkpoints)
        trainers = children(dvc.pid)
        dvc.kill()
        dvc.wait()
    assert trainers
    wait_until(lambda: all(map(gone, trainers)), 6)
    assert "stopped, because dvc is gone" in (tmp_path / "log").read_text()
    assert GOES_ON.search(project.call(*command))
    assert len(kept.results()) == 3
