"""Columns of Fig. 2 as a GPU machine would train them, rehearsed on a CPU at toy size."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmarks.gpu.fig2_data import load_dataset
from PIL import Image

from smallbatch.config.params import DatasetConfig, parse_dataset
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import load_prepared

ROOT = Path(__file__).parents[2]
BLOCKER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mlflow", "dvc"}:
            raise ModuleNotFoundError(f"blocked: {name}")
sys.meta_path.insert(0, Missing())
"""


def encoded(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """90 and 70 training images, 40 test images of ten classes."""
    rng, folder = np.random.default_rng(0), tmp_path / "shards"
    folder.mkdir()
    features = {"label": {"names": [f"class {i}" for i in range(10)]}}
    text = json.dumps({"info": {"features": features}})
    for name, count in [("train-00000-of-00002", 90), ("train-00001-of-00002", 70), ("test", 40)]:
        images = [{"bytes": encoded(rng), "path": None} for _ in range(count)]
        table = pa.table({"img": images, "label": [i % 10 for i in range(count)]})
        table = table.replace_schema_metadata({"huggingface": text})
        name = name if name.startswith("train") else "test-00000-of-00001"
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=25)
    return folder


def test_processes_load_what_prepare_prepares(shards: Path, tmp_path: Path) -> None:
    raw = {"name": "toy", "source": "parquet", "path": str(shards), "validation_fraction": 0.2}
    config: DatasetConfig = parse_dataset(raw, "test")
    meta = prepare(config, tmp_path / "data")
    loaded, prepared = load_dataset(config), load_prepared(tmp_path / "data/prepared/toy")
    assert loaded.meta == meta == prepared.meta
    assert loaded.arrays().keys() == prepared.arrays().keys()
    for name, array in prepared.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], array)


def run(tmp_path: Path, shards: Path, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu.fig2", "--data", str(shards), "--toy"]
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    return subprocess.run(
        [*command, *folders, "--images", "150", *more],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_columns_come_back_packed_and_in_time(shards: Path, tmp_path: Path) -> None:
    done = run(tmp_path, shards, "--batch-sizes", "16", "8", "--minutes", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "resnet8-m16.tar", "resnet8-m8.tar"
    ]  # fmt: skip
    for m in (16, 8):
        with tarfile.open(tmp_path / f"out/resnet8-m{m}.tar") as archive:
            # Older releases of Python 3.11 have no filters.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(tmp_path / "there")
        folder = tmp_path / f"there/models/cifar10-toy/resnet8/m{m}"
        assert {path.name for path in folder.iterdir()} == {
            "history.parquet", "runs.json", "timing.json"
        }  # fmt: skip
        runs = json.loads((folder / "runs.json").read_text())
        assert (runs["batch_size"], len(runs["runs"])) == (m, 13)
        assert {run["outcome"] for run in runs["runs"]} == {"finished", "diverged"}

    late = run(tmp_path, shards, "--batch-sizes", "16", "4", "--minutes", "0.5", "--rate", "1")
    assert late.returncode == 1, late.stderr
    assert "m=16: " in late.stdout  # packed again without training
    assert "m=4: left out" in late.stdout
    assert not (tmp_path / "out/resnet8-m4.tar").exists()
