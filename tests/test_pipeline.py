"""The DVC pipeline in a folder of its own, run by real `dvc` processes."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from smallbatch.protocol.run import PROTOCOL
from tests.database import add_database
from tests.project import Project, stages_run

PARAMS = """
dataset: {name: digits, source: digits, subset: 15, test_subset: 40}
grid:
  studies: [plain]
  dependent: [{name: bn, after: plain}]
  batch_sizes: [8]
  base_lrs: [2^-8, 2^-6, 2^6]
  seeds: 1
advise: {studies: []}
studies:
  plain: {model: resnet8, norm: none, epochs: 2, weight_decay: 0.0001, figure: "2"}
  bn: {model: resnet8, norm: batch, base_lr: best of plain, epochs: 2, weight_decay: 0.0001}
"""
"""Of fewer than 16 images no variance of updates is measured, which takes long."""
SYNC_TWICE = """
from smallbatch.cli.main import main
for _ in range(2):
    main(["sync"], standalone_mode=False)
"""
"""In one process: most of the time goes to its imports."""

pytestmark = pytest.mark.slow


def test_the_pipeline_from_data_to_report(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", PARAMS)
    # More batch sizes: tests/test_wheel.py.
    trains = ["train@plain-8", "train_dependent@study0-8"]
    assert sorted(project.repro()) == ["evaluate", "measure", "prepare", "report", *trains]
    assert (project.root / "reports/report.html").stat().st_size > 10_000
    runs = pd.read_parquet(project.root / "reports/evaluation/runs.parquet")
    assert list(runs.groupby("study").size().items()) == [("bn", 1), ("plain", 3)]
    assert set(runs.outcome) == {"finished", "diverged"}

    mirrored = project.runs_in_mlflow()
    assert len(mirrored) == len(set(mirrored)) == 4
    assert {run for _, run in mirrored} == set(runs.run)

    _nothing_changed(project)
    _restored_from_the_cache(project)
    _mlflow_rebuilt(project, mirrored)
    project.tracked = False  # from here on it is about files
    _one_study_changed(project)
    _a_column_stays_until_it_is_trained_again(project)


def _nothing_changed(project: Project) -> None:
    """In processor time: other processes may hold up the clock."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    start = spent()
    assert project.repro() == []
    assert spent() - start < 5


def _restored_from_the_cache(project: Project) -> None:
    before = project.outputs()
    shutil.rmtree(project.root / "models")
    shutil.rmtree(project.root / ".smallbatch")  # nothing to resume from
    project.call("dvc", "checkout")
    assert project.repro() == []
    assert project.outputs() == before


def _mlflow_rebuilt(project: Project, mirrored: list[tuple[str, str]]) -> None:
    for file in project.root.glob("mlflow.db*"):  # a log of another database would spoil a new one
        file.unlink()
    add_database(project.root)
    # A parent run for each of the two columns besides.
    first, second = project.call(sys.executable, "-P", "-c", SYNC_TWICE).splitlines()
    assert "6 MLflow runs created" in first
    assert "0 MLflow runs created, 0 completed" in second
    assert project.runs_in_mlflow() == mirrored


def _one_study_changed(project: Project) -> None:
    params = project.root / "params.yaml"
    text = params.read_text()
    bn = "best of plain, epochs: "
    params.write_text(text.replace(f"{bn}2", f"{bn}3"))
    output = project.call("dvc", "repro", "train", "train_dependent")
    assert stages_run(output) == ["train_dependent@study0-8"]
    behind = json.loads(project.call("dvc", "status", "--json"))
    assert sorted(behind) == ["code", "evaluate", "measure", "report"]


def _a_column_stays_until_it_is_trained_again(project: Project) -> None:
    """As after PROTOCOL was raised: DVC would remove the old one before the new one is begun."""
    stage, params = "train@plain-8", project.root / "params.yaml"
    text, before = params.read_text(), project.outputs()
    protocol = project.root / "src/smallbatch/protocol/run.py"
    protocol.write_text(protocol.read_text().replace(f"PROTOCOL = {PROTOCOL}", "PROTOCOL = 99"))

    params.write_text(text + "compute: {device: nowhere}\n")  # so that the training fails
    with project.start("dvc", "repro", stage) as process:
        assert "nowhere" in process.communicate()[0]
    assert process.returncode != 0
    assert project.outputs() == before

    params.write_text(text)
    assert stages_run(project.call("dvc", "repro", stage)) == [stage]
    after = project.outputs()
    assert after.keys() == before.keys()
    told = [json.loads(files[name]) for files in (before, after) for name in files
            if name.endswith("plain/m8/runs.json")]  # fmt: skip
    assert [record["protocol"] for record in told] == [PROTOCOL, 99]
    assert not list(project.root.rglob("*.part"))
