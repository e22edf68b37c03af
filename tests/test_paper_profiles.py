"""The paper's profiles at scale smoke: every study of theirs, from the images to the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from smallbatch import tracking
from smallbatch.cli.main import main
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


def smoke(name: str, dataset: dict[str, Any]) -> dict[str, Any]:
    """A profile at scale smoke, its images read from a folder of Parquet files."""
    params: dict[str, Any] = YAML(typ="safe").load(profiles.read(name, "smoke"))
    params["dataset"] |= {"source": "parquet", **dataset}
    return params


def written(params: dict[str, Any], root: Path) -> Project:
    project = Project(root, "")
    with (root / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)
    return project


def columns(params: dict[str, Any]) -> list[tuple[str, str]]:
    """(study, batch size) of every column, those that take another's base learning rate last."""
    grid = params["grid"]
    studies = [*grid["studies"], *(it["name"] for it in grid["dependent"])]
    return [(study, str(m)) for study in studies for m in grid["batch_sizes"]]


class _NoMirror:
    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Project]:
    """Both profiles: that of few studies through `dvc`, that of many in this process."""
    root = tmp_path_factory.mktemp("paper")
    cifar10 = REAL / "cifar10"
    if not cifar10.is_dir():
        cifar10 = stand_in(root / "cifar10-data", 10, "label")
    cifar100 = stand_in(root / "cifar100-data", 100, "fine_label")
    few = smoke("paper-cifar100", {"path": str(cifar100), "label_column": "fine_label"})
    through_dvc = written(few, root / "cifar100")
    with through_dvc.start("dvc", "repro") as dvc:
        many = smoke("paper-cifar10", {"path": str(cifar10)})
        del many["grid"]["batch_sizes"][1:]  # its many studies take the time; the other has both
        here = written(many, root / "cifar10")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(here.root)
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            patch.setattr(tracking, "LiveMirror", _NoMirror)
            for words in (
                ("prepare",),
                *(("train", *column) for column in columns(many)),
                ("measure",),
                ("evaluate",),
                ("report",),
            ):
                done = CliRunner().invoke(main, words)
                assert done.exit_code == 0, done.output
        output = dvc.communicate()[0]
    assert dvc.returncode == 0, output
    assert len(stages_run(output)) == 1 + len(columns(few)) + 3
    return {"10": here, "100": through_dvc}


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


def test_every_run_is_tracked_once(projects: dict[str, Project]) -> None:
    tracked = [name for _, name in projects["100"].runs_in_mlflow()]
    assert sorted(tracked) == sorted(set(runs_of(projects["100"]).run))


def test_the_report_shows_every_study(projects: dict[str, Project]) -> None:
    for project in projects.values():
        page = (project.root / "reports/report.html").read_text()
        for study in runs_of(project).study.unique():
            assert f'.{study}">' in page
