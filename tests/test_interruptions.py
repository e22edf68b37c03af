"""Trainings killed, interrupted and out of time, in real processes: nothing lost, nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import ROOT, Project

pytestmark = pytest.mark.slow

PARAMS = """
dataset: {{name: digits, source: digits, subset: 400, test_subset: 100}}
grid: {{studies: [bn], dependent: [], batch_sizes: [4], base_lrs: [2^-10, 2^5], seeds: 2}}
studies:
  bn: {{model: resnet8, norm: batch, epochs: 3, weight_decay: 0.0001}}
compute: {{device: cpu, engine: {engine}, checkpoint_seconds: 0.3}}
"""
RESULTS = ("history.parquet", "weights.safetensors", "runs.json")


class Folder:
    """A working folder in which to train."""

    def __init__(self, root: Path, engine: str) -> None:
        self.root = root
        (root / "params.yaml").write_text(PARAMS.format(engine=engine))

    def start(self, *words: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        environment.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "smallbatch", *words],
            cwd=self.root,
            env=environment,
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

    def checkpoints(self) -> list[Path]:
        return list(self.root.glob(".smallbatch/work/*.checkpoints/*/*/*.checkpoint"))

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
    assert "runs go on from their checkpoints" in said
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

    assert "go on from their checkpoints" in folder.call("train", "bn", "4")
    resumed = folder.results()
    assert not folder.checkpoints()
    shutil.rmtree(tmp_path / "models")
    shutil.rmtree(tmp_path / ".smallbatch/work")
    assert "go on from" not in folder.call("train", "bn", "4")
    assert folder.results() == resumed


def test_a_training_ends_with_the_dvc_that_started_it(tmp_path: Path) -> None:
    project = Project(tmp_path, PARAMS.format(engine="stacked"))
    kept = Folder(tmp_path, "stacked")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path / "src"),
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
    assert "go on from their checkpoints" in project.call(*command)
    assert len(kept.results()) == 3
