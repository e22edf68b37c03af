"""The peers against float64 on a CPU, each framework in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.gpu.peers_task import Result, Task, compare, load, make_task

ROOT = Path(__file__).parents[2]
TORCH = {
    "batch": ("plain-graph", "grouped-graph", "grouped-graph-cl"),
    "none": ("grouped-graph", "vmap-compile"),  # compiling batch norm takes minutes on a CPU
}


def rehearse(module: str, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"benchmarks.gpu.{module}", "--device", "cpu", "--toy"]
    done = subprocess.run(
        [*command, "--lanes", "4", *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_torch_peers_train_as_the_oracle_does(norm: str) -> None:
    more = ("--norm", norm, "--check", "--seconds", "0", "--peer", *TORCH[norm])
    status, lines = rehearse("peers_torch", *more)
    assert status == 0, lines
    assert [line["peer"] for line in lines] == list(TORCH[norm])
    for line in lines:
        assert line["passed"], line
        assert 0 < line["deviation"] < 1e-2
        assert line["right_difference"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_jax_peers_train_as_the_oracle_does(norm: str) -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed: no dependency of the package")
    peers = ("jax-vmap", "jax-einsum", "jax-einsum-x3")
    status, lines = rehearse("peers_jax", "--norm", norm, "--check", "--seconds", "0.01")
    assert [line["peer"] for line in lines] == list(peers)
    for line in lines[:2]:
        assert line["passed"], line
        assert 0 < line["deviation"] < 1e-2
        assert line["images_per_second"] > 0
    # A CPU has no TF32: that entry fails, the others are there.
    assert status == 1
    assert "TF32" in lines[2]["error"]


@pytest.mark.slow
def test_every_entry_has_its_line_and_its_limit() -> None:
    peers = ("--peer", "plain-graph", "grouped-graph")
    status, lines = rehearse("peers_torch", *peers, "--m", "2", "4", "--seconds", "0.01")
    assert status == 0, lines
    assert [(line["lanes"], line["m"]) for line in lines] == [(1, 2), (1, 4), (4, 2), (4, 4)]
    assert all(line["images_per_second"] > 0 for line in lines)
    status, lines = rehearse("peers_torch", *peers[:2], "--seconds", "200", "--limit", "4")
    assert status == 1
    assert lines[0]["error"] == "TimeoutError: not done after 4 s"


def test_lanes_of_a_seed_are_neighbours_and_have_its_batches() -> None:
    images, labels = load(None, toy=True)
    task = make_task("batch", 3, np.full(26, 0.5), images, labels, 100)
    assert task.table.shape == (100, 2, 3)
    assert [task.seed(lane) for lane in range(26)] == [0] * 13 + [1] * 13
    epoch = task.table[:, 0].ravel()[: len(labels)]
    assert sorted(epoch) == list(range(len(labels)))
    assert make_task("none", 3, np.full(13, 0.5), images, labels, 5).seeds == 1


def test_images_come_in_either_order(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), np.uint8)
    labels = np.arange(20) % 10
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    np.savez(tmp_path / "b.npz", images=pixels.transpose(0, 2, 3, 1), labels=labels)
    a, b = load(tmp_path / "a.npz", toy=False), load(tmp_path / "b.npz", toy=False)
    assert np.array_equal(a[0], b[0])
    assert np.allclose(a[0].mean((0, 2, 3)), 0, atol=1e-5)
    assert np.allclose(a[0].std((0, 2, 3)), 1, atol=1e-5)


def test_a_lane_that_is_not_a_number_does_not_pass() -> None:
    start, end = {"w": np.zeros(2)}, {"w": np.ones(2)}
    ones = np.ones(2)
    expected = Result([end, end], ones, ones)
    good = compare(Result([end, end], ones, ones), [start, start], expected)
    bad = compare(Result([{"w": ones * np.nan}, end], ones, ones), [start, start], expected)
    assert (good["passed"], bad["passed"]) == (True, False)


def test_decay_is_by_the_learning_rate_of_the_mean() -> None:
    nothing = np.zeros((1, 3, 8, 8), np.float32), np.zeros(1, np.int64)
    task = Task("none", *nothing, np.zeros((1, 1, 4), np.int64), np.array([0.5]))
    assert task.decays[0] == 1 - 0.5 * 4 * 1e-4
