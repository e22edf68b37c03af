"""The ImageNet profile at scale smoke, on made-up images: from the images to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.conftest import IMAGE_TYPE, encode, noise
from tests.project import Project
from tests.smoke import call, reproduced, runs_of, smoke

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Noise of many shapes in the layout of ImageNet on the Hugging Face hub."""
    root = tmp_path_factory.mktemp("imagenet")
    names = [f"class {k}" for k in range(5)]
    features = {"label": {"_type": "ClassLabel", "names": names}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for split, count in (("train", 12), ("validation", 4)):
        labels = np.tile(np.arange(len(names)), count)
        images = [
            {"bytes": encode(noise(row, 30 + row % 7, 40, 3)), "path": None}
            for row in range(len(labels))
        ]
        table = pa.table({"image": pa.array(images, type=IMAGE_TYPE), "label": pa.array(labels)})
        path = root / f"{split}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata(metadata), path)
    return reproduced(smoke("paper-imagenet", {"path": str(root)}), root / "project")


def test_both_figures_are_run(project: Project) -> None:
    runs = runs_of(project)
    assert set(runs.dataset) == {"imagenet-smoke"}
    assert set(runs.figure.dropna()) == {"12", "14"}
    ghost = runs[runs.figure == "14"]
    cells = sorted(zip(ghost.batch_size, ghost.bn_batch_size, strict=True))
    assert cells == [(4, 2), (4, 4), (8, 2), (8, 4)]
    assert set(ghost.base_lr_from) == {"resnet-bn-128-aug"}


def test_small_batches_are_not_trained_twice(project: Project) -> None:
    """Up to 4 both studies have the same runs; at 8 the second has sub-batches of 4."""
    runs = runs_of(project)
    first, second = (
        {m: set(own.run) for m, own in runs[runs.study == study].groupby("batch_size")}
        for study in ("resnet-bn-aug", "resnet-bn-128-aug")
    )
    assert first[4] == second[4]
    assert not first[8] & second[8]
    assert set(runs[(runs.study == "resnet-bn-128-aug") & (runs.batch_size == 8)].norm) == {"ghost"}
    kept = [it.name for it in (project.root / ".smallbatch/work").iterdir() if len(it.name) == 16]
    assert sorted(kept) == sorted(set(runs.run))


def test_runs_of_two_studies_are_tracked_under_both(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    call("sync")
    runs = runs_of(project)
    tracked = [(name.rpartition("/")[2], run) for name, run in project.runs_in_mlflow()]
    assert sorted(tracked) == sorted(zip(runs.study, runs.run, strict=True))


def test_the_report_names_the_figures_and_warns_of_nothing(project: Project) -> None:
    page = (project.root / "reports/report.html").read_text()
    for study, figure in (("resnet-bn-aug", "12"), ("resnet-ghost-aug", "14")):
        section = page.partition(f'id="study-imagenet-smoke.{study}"')[2].partition('id="study-')[0]
        assert f"The paper, Fig. {figure}</strong>" in section
    assert "were trained with different" not in page
    record: dict[str, Any] = json.loads((project.root / "reports/claims.json").read_text())
    own = [it for it in record["claims"] if it["figure"] in ("12", "14")]
    assert len(own) == 7
    assert {it["findings"][0]["verdict"] for it in own} == {"undecided"}


def test_where_the_images_are_must_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from smallbatch.cli.main import main

    monkeypatch.chdir(tmp_path)
    call("profile", "use", "paper-imagenet")
    done = CliRunner().invoke(main, ["prepare"])
    assert done.output.startswith("Error: dataset.path: found data/imagenet, which does not exist")
