"""The DVC pipeline in a folder of its own, run by real `dvc` processes."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
PARAMS = """
dataset: {name: digits, source: digits, subset: 60, test_subset: 40}
grid:
  studies: [plain, bn]
  dependent: []
  batch_sizes: [8, 32]
  base_lrs: [2^-8, 2^-6, 2^6]
  seeds: 1
studies:
  plain: {model: resnet8, norm: none, epochs: 2, weight_decay: 0.0001, figure: "2"}
  bn: {model: resnet8, norm: batch, epochs: 2, weight_decay: 0.0001}
"""

pytestmark = pytest.mark.slow


class Project:
    """A checkout with tiny params."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / ".dvc").mkdir()
        for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config"):
            shutil.copy(ROOT / name, root / name)
        shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
        skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / "src", root / "src", ignore=skip)
        (root / "params.yaml").write_text(PARAMS)
        subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)

    def call(self, *words: str) -> str:
        # The stages must find this interpreter's environment, and this copy of the source.
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        done = subprocess.run(
            words, cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def repro(self) -> list[str]:
        """Run the pipeline; returns the stages whose commands ran."""
        return re.findall(r"^Running stage '(.*)':$", self.call("dvc", "repro"), re.MULTILINE)

    def outputs(self) -> dict[str, bytes]:
        """What does not depend on the clock."""
        paths = [p for p in self.root.glob("models/**/*") if p.is_file()]
        return {str(p): p.read_bytes() for p in paths if p.name != "timing.json"}

    def runs_in_mlflow(self) -> list[tuple[str, str]]:
        """(experiment, run hash) of every child run, straight from the database."""
        with sqlite3.connect(self.root / "mlflow.db") as database:
            return sorted(
                database.execute(
                    "SELECT e.name, t.value FROM tags t JOIN runs r USING (run_uuid) "
                    "JOIN experiments e USING (experiment_id) WHERE t.key = 'smallbatch.run'"
                )
            )


def test_the_pipeline_from_data_to_report(tmp_path: Path) -> None:
    project = Project(tmp_path)
    trains = ["train@plain-8", "train@plain-32", "train@bn-8", "train@bn-32"]
    assert sorted(project.repro()) == sorted(["prepare", *trains, "evaluate", "report"])
    assert (tmp_path / "reports/report.html").stat().st_size > 10_000
    runs = pd.read_parquet(tmp_path / "reports/evaluation/runs.parquet")
    assert len(runs) == 2 * 2 * 3
    assert set(runs.outcome) == {"finished", "diverged"}
    metrics = project.call("dvc", "metrics", "show", "--json")
    assert "best_accuracy" in metrics
    assert "best accuracy against batch size" in project.call("dvc", "plots", "show", "--json")

    mirrored = project.runs_in_mlflow()
    assert len(mirrored) == len(set(mirrored)) == 12
    assert {run for _, run in mirrored} == set(runs.run)

    _nothing_changed(project)
    _restored_from_the_cache(project)
    _mlflow_rebuilt(project, mirrored)
    _one_study_changed(project)


def _nothing_changed(project: Project) -> None:
    start = time.perf_counter()
    assert project.repro() == []
    assert time.perf_counter() - start < 5


def _restored_from_the_cache(project: Project) -> None:
    before = project.outputs()
    shutil.rmtree(project.root / "models")
    shutil.rmtree(project.root / ".smallbatch")  # nothing to resume from
    assert project.repro() == []
    assert project.outputs() == before


def _mlflow_rebuilt(project: Project, mirrored: list[tuple[str, str]]) -> None:
    (project.root / "mlflow.db").unlink()
    python = [sys.executable, "-P", "-m", "smallbatch"]
    # A parent run for each of the four columns besides.
    assert "16 MLflow runs created" in project.call(*python, "sync")
    assert project.runs_in_mlflow() == mirrored
    assert "0 MLflow runs created, 0 completed" in project.call(*python, "sync")


def _one_study_changed(project: Project) -> None:
    params = project.root / "params.yaml"
    text = params.read_text()
    params.write_text(text.replace("norm: batch, epochs: 2", "norm: batch, epochs: 3"))
    assert sorted(project.repro()) == ["evaluate", "report", "train@bn-32", "train@bn-8"]
