"""Errors of a model of the user's own, told as such: one line, exit 2, and where in the project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import ROOT, UNTRACKED

LATE = """from torch import nn


class Net(nn.Linear):
    calls = 0

    def __init__(self, num_classes, in_chans):
        super().__init__(in_chans * 64, num_classes)

    def forward(self, x):
        print("forward")
        if self.training:
            Net.calls += 1
            if Net.calls > LIMIT:
                raise ValueError("late\\nwith details")
        return super().forward(x.flatten(1))
"""


def run(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = ("run", "--model", "late:Net", "--norm", "none", "-m", "64", "--lr", "0.01")
    return subprocess.run(
        [sys.executable, "-P", "-m", "smallbatch", *words, "--epochs", "1", *more],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src{os.pathsep}{UNTRACKED}"},
    )  # fmt: skip


@pytest.mark.slow
def test_an_error_during_training_is_the_models(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE.replace("LIMIT", "20"))
    done = run(tmp_path)
    assert done.returncode == 2
    *_, line = done.stderr.splitlines()
    told = "Error: model: 'late:Net' fails in training: ValueError: late (late.py, line 15)"
    assert line == told
    assert not (tmp_path / ".smallbatch/errors").exists()


@pytest.mark.slow
def test_what_a_model_prints_is_not_in_the_json(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE.replace("LIMIT", "10_000"))
    done = run(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "finished"
    assert "forward" in done.stderr
