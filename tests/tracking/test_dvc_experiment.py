"""`dvc exp run --temp`: its runs stay in the project's database, though its folder goes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.project import Project

PARAMS = """\
dataset: {name: digits, source: digits, subset: 60}
grid: {studies: [study], dependent: [], batch_sizes: [30], base_lrs: [2^-6], seeds: 1}
studies: {study: {model: resnet8, norm: none, epochs: 1}}
compute: {device: cpu, engine: loop, workers: 1}
"""


@pytest.mark.slow
def test_its_runs_are_kept_in_the_project(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", PARAMS)
    (project.root / ".dvc/.gitignore").write_text("/tmp\n/cache\n/config.local\n")
    for words in (
        ("config", "user.email", "me@example.org"),
        ("config", "user.name", "me"),
        ("add", "--all"),
        ("commit", "--quiet", "--message", "start"),
    ):
        subprocess.run(["git", *words], cwd=project.root, check=True)
    project.call("dvc", "exp", "run", "--temp", "train@study-30")
    assert not [*project.root.glob(".dvc/tmp/exps/**/mlflow.db")]
    [(experiment, run)] = project.runs_in_mlflow()
    assert experiment == "digits/study"
    assert len(run) == 16
    assert [*project.root.glob("mlartifacts/digits/study/models/*/artifacts/MLmodel")]
