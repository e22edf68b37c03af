"""Profiles at scale smoke, from the images to the report, in the process of the test."""

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
from smallbatch.engines import update_variance
from smallbatch.report.figures import Gallery
from tests.data.conftest import IMAGE_TYPE, encode, noise
from tests.project import ROOT, Project

REAL = ROOT.parent / "shared/datasets"


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


def reproduced(params: dict[str, Any], root: Path) -> Project:
    """A project after every stage, as `dvc repro` calls them, without MLflow."""
    project = written(params, root)
    trained = [("train", *column) for column in columns(params)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.root)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(tracking, "LiveMirror", _NoMirror)
        # Variances of a thousand updates of each model say no more about its profile than of a few.
        patch.setattr(update_variance, "BATCHES", 2)
        patch.setattr(update_variance.update_variances, "__defaults__", ((0, 8),))
        # The figures are in the page; what saves them as files: tests/report/test_page.py.
        patch.setattr(Gallery, "_save", lambda *_: None)
        for words in (("prepare",), *trained, ("measure",), ("evaluate",), ("report",)):
            call(*words)
    return project


def call(*words: str) -> None:
    """A command that must succeed, in this process and folder."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output


def runs_of(project: Project) -> pd.DataFrame:
    return pd.read_parquet(project.root / "reports/evaluation/runs.parquet")
