"""The paper's profiles at scale smoke: every study of theirs through real `dvc` processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from smallbatch.config import profiles
from tests.data.conftest import IMAGE_TYPE, encode, noise
from tests.project import ROOT, Project, stages_run

REAL = ROOT.parent / "shared/datasets"

pytestmark = pytest.mark.slow


def stand_in(folder: Path, classes: int, label: str) -> Path:
    """Noise of 32×32 in the Parquet layout of the Hugging Face hub, every class in both splits."""
    folder.mkdir(parents=True)
    features = {label: {"_type": "ClassLabel", "names": [f"class {k}" for k in range(classes)]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, count in (("train", 8), ("test", 2)):
        labels = np.tile(np.arange(classes), count)
        images = [
            {"bytes": encode(noise(row, 32, 32, 3)), "path": None} for row in range(len(labels))
        ]
        table = pa.table({"img": pa.array(images, type=IMAGE_TYPE), label: pa.array(labels)})
        path = folder / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path)
    return folder


def smoke(name: str, dataset: dict[str, Any], root: Path) -> Project:
    """A project with a profile at scale smoke, its images read from a folder of Parquet files."""
    yaml = YAML(typ="safe")
    params: dict[str, Any] = yaml.load(profiles.read(name, "smoke"))
    params["dataset"] |= {"source": "parquet", **dataset}
    if name == "paper-cifar10":  # its many studies take the time; the other has both
        del params["grid"]["batch_sizes"][1:]
    project = Project(root, "")
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    return project


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    """Both profiles, run side by side."""
    root = tmp_path_factory.mktemp("paper")
    cifar10 = REAL / "cifar10"
    if not cifar10.is_dir():
        cifar10 = stand_in(root / "cifar10-data", 10, "label")
    cifar100 = stand_in(root / "cifar100-data", 100, "fine_label")
    found = {
        "10": smoke("paper-cifar10", {"path": str(cifar10)}, root / "cifar10"),
        "100": smoke(
            "paper-cifar100", {"path": str(cifar100), "label_column": "fine_label"}, root / "c100"
        ),
    }
    started = {name: project.start("dvc", "repro") for name, project in found.items()}
    for name, process in started.items():
        with process:
            output = process.communicate()[0]
        assert process.returncode == 0, output
        params = YAML(typ="safe").load((found[name].root / "params.yaml").read_text())["grid"]
        columns = (len(params["studies"]) + len(params["dependent"])) * len(params["batch_sizes"])
        assert len(stages_run(output)) == 1 + columns + 3
    return found


def runs_of(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.root / "reports/evaluation/runs.parquet")


def test_every_study_of_every_cifar_figure_is_run(projects: dict[str, Project]) -> None:
    runs = runs_of(projects["10"])
    figures = {"1", "2", "3", "text", "5", "6", "7", "8", "10", "13a", "17", "18"}
    assert set(runs.figure.dropna()) == figures
    assert set(runs_of(projects["100"]).figure) == {"9", "11", "13b"}
    assert set(runs.scale) == {"smoke"}
    assert set(runs.dataset) == {"cifar10-smoke"}


def test_the_dependent_study_takes_the_best_base_lr_of_the_same_batch_size(
    projects: dict[str, Project],
) -> None:
    for project in projects.values():
        runs = runs_of(project)
        ghost = runs[runs.bn_batch_sizes.notna()]
        source = runs[runs.study == "resnet32-bn-aug"]
        assert set(ghost.base_lr_from) == {"resnet32-bn-aug"}
        for m, column in ghost.groupby("batch_size"):
            # One seed: the best cell is the run of highest reported accuracy; ties: the smaller η̃.
            own = source[source.batch_size == m].sort_values("base_lr")
            best = own[own.reported_accuracy == own.reported_accuracy.max()].base_lr.iloc[0]
            assert set(column.base_lr) == {best}


def test_sgd_batch_and_bn_batch_are_axes_of_their_own(projects: dict[str, Project]) -> None:
    runs = runs_of(projects["100"])
    ghost = runs[runs.bn_batch_sizes.notna()]
    cells = sorted(zip(ghost.batch_size, ghost.bn_batch_size, strict=True))
    assert cells == [(4, 2), (4, 4), (16, 2), (16, 4)]
    assert ghost.run.is_unique
    # Where the BN batch is the SGD batch, ghost batch norm is batch norm: another name for a run
    # of the source study, and the same numbers.
    (same,) = ghost[(ghost.batch_size == 4) & (ghost.bn_batch_size == 4)].to_dict("records")
    plain = runs[(runs.study == "resnet32-bn-aug") & (runs.batch_size == 4)]
    (twin,) = plain[plain.base_lr == same["base_lr"]].to_dict("records")
    assert same["final_train_loss"] == pytest.approx(twin["final_train_loss"], rel=1e-4)


def test_the_tracked_runs_name_their_bn_batch(projects: dict[str, Project]) -> None:
    runs = runs_of(projects["10"])
    assert len(projects["10"].runs_in_mlflow()) == len(runs)


def test_the_report_shows_every_study(projects: dict[str, Project]) -> None:
    for project in projects.values():
        page = (project.root / "reports/report.html").read_text()
        for study in runs_of(project).study.unique():
            assert f"-{study}" in page
