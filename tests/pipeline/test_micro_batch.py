"""Batches in parts, by commands in real processes: trained, killed, gone on, the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.columns import checkpoints

PARAMS = """
dataset: {name: digits, source: digits, subset: 200, test_subset: 50}
grid: {studies: [gbn, bn], dependent: [], batch_sizes: [32], base_lrs: [2^-8, 2^-7], seeds: 1}
advise: {studies: []}
studies:
  gbn: {model: resnet8, norm: ghost, bn_batch_size: 4, epochs: 12, weight_decay: 0.0001}
  bn: {model: resnet8, norm: batch, epochs: 12, weight_decay: 0.0001}
compute: {device: cpu, workers: 1, checkpoint_seconds: 0.2}
"""
PARTS = ("--micro-batch", "8")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("untracked")]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "smallbatch", *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def call(folder: Path, *words: str, code: int = 0) -> str:
    process = start(folder, *words)
    out, said = process.communicate(timeout=240)
    assert process.returncode == code, said
    return out + said


def project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "params.yaml").write_text(PARAMS)
    call(folder, "prepare")
    return folder


def results(folder: Path) -> list[bytes]:
    names = ("history.parquet", "weights.safetensors", "runs.json")
    return [(folder / "models/digits/gbn/m32" / name).read_bytes() for name in names]


def timing(folder: Path) -> dict[str, object]:
    return json.loads((folder / "models/digits/gbn/m32/timing.json").read_text())["column"]


def test_a_column_in_parts_is_killed_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = project(tmp_path / "whole")
    undisturbed, killed = (shutil.copytree(whole, tmp_path / it) for it in ("undisturbed", "it"))
    call(undisturbed, "train", "gbn", "32", *PARTS)
    assert timing(undisturbed)["micro_batch"] == 8
    assert timing(undisturbed)["engine"] == "loop"

    training = start(killed, "train", "gbn", "32", *PARTS)
    deadline = time.monotonic() + 120
    while not checkpoints(killed):
        assert time.monotonic() < deadline
        assert training.poll() is None, training.communicate()
        time.sleep(0.02)
    training.kill()
    training.communicate(timeout=120)
    assert not (killed / "models/digits/gbn/m32").exists()
    assert "from its checkpoint" in call(killed, "train", "gbn", "32", *PARTS)
    assert results(killed) == results(undisturbed)
    assert timing(killed)["micro_batch"] == 8

    call(whole, "train", "gbn", "32")
    assert "micro_batch" not in timing(whole)
    assert results(whole) != results(undisturbed)  # rounded in another order
    one, other = (
        pd.read_parquet(it / "models/digits/gbn/m32/history.parquet")
        for it in (whole, undisturbed)
    )  # fmt: skip
    assert list(one["run"]) == list(other["run"])
    first = [frame[frame["epoch"] == 1]["train_loss"].tolist() for frame in (one, other)]
    assert first[0] == pytest.approx(first[1], rel=1e-4)


def test_what_cannot_be_divided_is_refused_in_a_line(tmp_path: Path) -> None:
    folder = project(tmp_path / "it")
    said = call(folder, "train", "bn", "32", *PARTS, code=2).strip().splitlines()[-1]
    assert said == (
        "Error: compute.micro_batch: found 8 at batch size 32; norm batch takes statistics from "
        "all of a batch at once, so that none is divided; allowed: norm ghost with a "
        "bn_batch_size, or auto"
    )
    said = call(folder, "train", "gbn", "32", "--micro-batch", "6", code=2)
    assert "with a BN batch size of 4, allowed: a multiple of 4, or auto" in said
    said = call(folder, "train", "gbn", "32", "--micro-batch", "none", code=2)
    assert "--micro-batch': found 'none', allowed: auto, or a number from 1" in said
    assert not (folder / "models").exists()


def test_a_single_run_in_parts(tmp_path: Path) -> None:
    words = ("run", "--epochs", "1", "-m", "64", "--base-lr", "2^-8", "--json", *PARTS)
    done = start(tmp_path, *words)
    out, said = done.communicate(timeout=240)
    assert done.returncode == 0, said
    folder = tmp_path / json.loads(out)["folder"]
    assert json.loads((folder / "timing.json").read_text())["column"]["micro_batch"] == 8
