"""Runs by several ranks, by commands in real processes: killed, stopped, refused, the same bytes."""

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

import pandas as pd
import psutil
import pytest

PARAMS = """
dataset: {name: digits, source: digits, subset: 200, test_subset: 50}
grid: {studies: [gbn, bn], dependent: [], batch_sizes: [31], base_lrs: [2^-8], seeds: 3}
advise: {studies: []}
studies:
  gbn: {model: resnet8, norm: ghost, bn_batch_size: 4, epochs: 12, weight_decay: 0.0001}
  bn: {model: resnet8, norm: batch, epochs: 12, weight_decay: 0.0001}
compute: {device: cpu, ranks: RANKS, checkpoint_seconds: 0.1}
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


def settings(folder: Path, text: str = PARAMS, ranks: int = 2) -> None:
    (folder / "params.yaml").write_text(text.replace("RANKS", str(ranks)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    settings(folder)
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
    for path in folder.rglob("*.checkpoint"):
        with suppress(FileNotFoundError):
            found.append(path.stat().st_mtime)
    return max(found)


def ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


def test_whoever_is_killed_the_same_command_ends_with_the_same_bytes(
    prepared: Path, tmp_path: Path
) -> None:
    folder, whole = project(prepared, tmp_path / "it"), project(prepared, tmp_path / "whole")
    call(whole, "train", "gbn", "31")

    for victim in (1, 0):
        training, ranks = begin(folder)
        ranks[victim].kill()
        said = training.communicate(timeout=20)[0].strip().splitlines()
        assert training.returncode == 2
        assert said[-1].startswith("Error: a training worker was killed by signal 9: if memory ran")
        assert "Traceback" not in "".join(said)
        assert ended(ranks)
    training, ranks = begin(folder)
    training.kill()
    training.communicate(timeout=20)
    assert ended(ranks)
    training, ranks = begin(folder)
    os.killpg(training.pid, signal.SIGINT)
    said, _ = training.communicate(timeout=20)
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


def test_one_process_trains_the_same_runs_but_for_rounding(prepared: Path, tmp_path: Path) -> None:
    text = PARAMS.replace("epochs: 12", "epochs: 1")
    histories = list[pd.DataFrame]()
    for ranks in (2, 1):
        folder = project(prepared, tmp_path / str(ranks))
        settings(folder, text, ranks)
        call(folder, "train", "gbn", "31")
        histories.append(pd.read_parquet(folder / "models/digits/gbn/m31/history.parquet"))
        timing = json.loads((folder / "models/digits/gbn/m31/timing.json").read_text())
        assert ("ranks" in timing["column"]) == (ranks == 2)
    two, one = histories
    assert list(two["run"]) == list(one["run"])
    assert two["train_loss"].tolist() == pytest.approx(one["train_loss"].tolist(), rel=1e-4)
    assert two["test_loss"].tolist() == pytest.approx(one["test_loss"].tolist(), rel=1e-3)

    # Who asks for ranks gets what they made; who asks for none keeps what is finished.
    kept = results(tmp_path / "2")
    settings(tmp_path / "2", text, 1)
    shutil.rmtree(tmp_path / "2/models")
    call(tmp_path / "2", "train", "gbn", "31")
    assert results(tmp_path / "2") == kept
    settings(tmp_path / "1", text, 2)
    shutil.rmtree(tmp_path / "1/models")
    call(tmp_path / "1", "train", "gbn", "31")
    assert results(tmp_path / "1") == kept


def test_what_cannot_be_is_refused_in_a_line(prepared: Path, tmp_path: Path) -> None:
    folder = project(prepared, tmp_path / "it")
    said = call(folder, "train", "bn", "31", code=2).strip().splitlines()
    assert said[-1] == (
        "Error: compute.ranks: found 2 at batch size 31 with a BN batch of 31, allowed: 1, 31"
    )
    settings(folder, ranks=9)
    said = call(folder, "train", "gbn", "31", code=2).strip().splitlines()
    assert said[-1].endswith("found 9 at batch size 31 with a BN batch of 4, allowed: 1 to 8")
    settings(folder, PARAMS.replace("ranks", "engine: stacked, ranks"))
    said = call(folder, "train", "gbn", "31", code=2).strip().splitlines()
    assert "ranks: found 2 with engine stacked" in said[-1]
    assert not (folder / "models").exists()
