"""The GPU benchmark's command, rehearsed on a CPU in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A GPU machine may lack what the command must not need; ends up as a module that Python imports
# before anything else.
BLOCKER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mlflow", "dvc", "pydantic", "ruamel"}:
            raise ModuleNotFoundError(f"blocked: {name}")
sys.meta_path.insert(0, Missing())
"""


def rehearse(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    environment = os.environ | {
        "PYTHONPATH": paths, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--toy"]
    return subprocess.run(
        [*command, "--out", str(tmp_path / "out"), *more],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_measures_checks_and_resumes(tmp_path: Path) -> None:
    done = rehearse(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((tmp_path / "out/gpu.json").read_text())
    assert set(entries) == {
        "hardware", "convolutions", "one step", "float64 updates", "itself", "speed", "grid",
        "precision", "columns", "profile",
    }  # fmt: skip
    for part in ("one step", "float64 updates", "itself"):
        assert all(entry["passed"] for entry in entries[part].values())
    page = (tmp_path / "out/gpu.md").read_text()
    for title in (
        "Checks",
        "Images per second",
        "Fig. 2, extrapolated",
        "Precision",
        "Columns",
        "Kernels",
    ):
        assert title in page
    assert "Failed" not in page
    # An entry that failed is measured again, all others are kept.
    entries["speed"]["batch K=2 m=2 grouped"] = {"error": "of an earlier try"}
    (tmp_path / "out/gpu.json").write_text(json.dumps(entries))
    again = rehearse(tmp_path, "--parts", "hardware", "speed")
    assert again.returncode == 0, again.stdout + again.stderr
    measured = [line for line in again.stdout.splitlines() if line.startswith("[")]
    assert len(measured) == 1
    assert "batch K=2 m=2 grouped" in measured[0]
    after = json.loads((tmp_path / "out/gpu.json").read_text())
    assert after["speed"]["batch K=2 m=2 grouped"]["images_per_second"] > 0
    assert after["precision"] == entries["precision"]


@pytest.mark.slow
def test_what_does_not_fit_the_time_is_left_out_and_said(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "--parts", "grid", "--minutes", "0")
    assert done.returncode == 1
    page = (tmp_path / "out/gpu.md").read_text()
    assert "Left out for time" in page
    assert "grid: 8" in page
