"""Runs by several ranks, by commands in real processes: killed, stopped, the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.columns import checkpoints

PARAMS = """
dataset: {name: digits, source: digits, subset: 200, test_subset: 50}
grid: {studies: [gbn, bn], dependent: [], batch_sizes: [31], base_lrs: [2^-8], seeds: 3}
advise: {studies: []}
studies:
  gbn: {model: resnet8, norm: ghost, bn_batch_size: 4, epochs: 12, weight_decay: 0.0001}
  bn: {model: resnet8, norm: batch, epochs: 12, weight_decay: 0.0001}
compute: {device: cpu, ranks: 2, checkpoint_seconds: 0.1}
"""

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("untracked")]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "smallbatch", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def call(folder: Path, *words: str, code: int = 0) -> str:
    process = start(folder, *words)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text(PARAMS)
    call(folder, "prepare")
    return folder


def project(prepared: Path, folder: Path) -> Path:
    return shutil.copytree(prepared, folder)


def results(folder: Path) -> list[bytes]:
    names = ("history.parquet", "weights.safetensors", "runs.json")
    return [(folder / "models/digits/gbn/m31" / name).read_bytes() for name in names]


def begin(folder: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A training that has made a checkpoint, and its ranks, of which the first keeps them."""
    began, training = time.time(), start(folder, "train", "gbn", "31")
    while not _newest(folder) > began:
        assert time.time() < began + 120
        assert training.poll() is None, training.communicate()
        time.sleep(0.02)
    command = psutil.Process(training.pid)
    ranks = [it for it in command.children() if it.cmdline() == command.cmdline()]
    assert len(ranks) == 2
    return training, sorted(ranks, key=lambda it: it.pid)


def _newest(folder: Path) -> float:
    """When the last checkpoint was written; an attempt takes over those of the one before."""
    found = [0.0]
    for path in checkpoints(folder):
        with suppress(FileNotFoundError):
            found.append(path.stat().st_mtime)
    return max(found)


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=30)[1]


def test_whoever_is_killed_the_same_command_ends_with_the_same_bytes(
    prepared: Path, tmp_path: Path
) -> None:
    folder, whole = project(prepared, tmp_path / "it"), project(prepared, tmp_path / "whole")
    call(whole, "train", "gbn", "31")

    for victim in (1, 0):
        training, ranks = begin(folder)
        ranks[victim].kill()
        said = training.communicate(timeout=120)[0].strip().splitlines()
        assert training.returncode == 2
        assert said[-1].startswith("Error: a training worker was killed by signal 9: if memory ran")
        assert "Traceback" not in "".join(said)
        assert ended(ranks)
    training, ranks = begin(folder)
    training.kill()
    training.communicate(timeout=120)
    assert ended(ranks)
    training, ranks = begin(folder)
    os.killpg(training.pid, signal.SIGINT)
    said, _ = training.communicate(timeout=120)
    assert training.returncode == 75, said
    assert "interrupted by SIGINT: finished runs and checkpoints are kept" in said
    assert "Traceback" not in said
    assert "rank" not in said
    assert ended(ranks)

    assert "from its checkpoint" in call(folder, "train", "gbn", "31")
    assert results(folder) == results(whole)
    for it in (folder, whole):
        timing = json.loads((it / "models/digits/gbn/m31/timing.json").read_text())
        assert timing["column"]["ranks"] == 2
        assert (timing["column"]["engine"], timing["column"]["workers"]) == ("loop", 1)


def test_what_cannot_be_divided_is_refused_in_a_line(prepared: Path, tmp_path: Path) -> None:
    folder = project(prepared, tmp_path / "it")
    said = call(folder, "train", "bn", "31", code=2).strip().splitlines()
    assert said[-1] == (
        "Error: compute.ranks: found 2 at batch size 31 with a BN batch of 31, allowed: 1, 31"
    )
    assert not (folder / "models").exists()
