"""The best model of a column, loaded back the way a user would."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync
from smallbatch.tracking.best_model import model_facts
from smallbatch.tracking.records import read_column

if TYPE_CHECKING:
    import torch


def test_a_model_takes_nothing_from_the_folder(
    columns: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow would log the files of a uv project, and what links of these names lead to."""
    monkeypatch.setenv("MLFLOW_LOG_UV_FILES", "true")
    (workplace / "key").write_text("secret")
    for name in ("uv.lock", ".python-version"):
        (workplace / name).symlink_to("key")
    (workplace / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "0"\n')
    sync(columns.write(8, base_lrs=(0.5,)))
    files = {path.name for path in workplace.glob("mlartifacts/**/artifacts/**/*")}
    assert "MLmodel" in files
    assert not files & {"uv.lock", ".python-version", "pyproject.toml"}


def test_weights_that_are_a_pipe_are_not_waited_for(columns: Any, tables: Any) -> None:
    directory = columns.write(8, base_lrs=(0.5,))
    columns.write(16, base_lrs=(0.5,))
    (directory / "weights.safetensors").unlink()
    os.mkfifo(directory / "weights.safetensors")
    with pytest.raises(UserError, match="found a FIFO, allowed: a regular file"):
        sync(columns.root)
    logged = tables.query("select value from tags where key = 'smallbatch.model'")
    assert len(logged) == 1  # of the other column


def make_network(seed: int) -> torch.nn.Module:
    from smallbatch.models import build_model

    return build_model(
        "resnet8", "none", num_classes=10, in_chans=1, image_size=8, seed=seed, batch_size=8
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow")
def test_it_loads_and_predicts_as_torch_does(
    columns: Any, tables: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    import torch

    network = make_network(seed=3).eval()
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    directory = columns.write(8, diverged=(2.0**-3,), weights=weights)
    sync(directory)
    [(uri,)] = tables.query("select value from tags where key = 'smallbatch.model'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workplace / 'mlflow.db'}")
    model = mlflow.pyfunc.load_model(uri)
    images = np.random.default_rng(0).integers(0, 256, (300, 1, 8, 8), dtype=np.uint8)
    with torch.inference_mode():
        logits = network((torch.from_numpy(images).float() / 255 - 0.3) / 0.2)
    expected = torch.softmax(logits, 1).numpy()
    found = model.predict(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    with pytest.raises(mlflow.MlflowException, match="does not match expected dtype"):
        model.predict(images.astype(np.float32) / 255)
    files = {path.name for path in workplace.glob("mlartifacts/**/artifacts/**/*")}
    assert "weights.safetensors" in files
    assert not {name for name in files if name.endswith((".pkl", ".pt", ".pth"))}


def test_weights_of_another_column_are_refused(columns: Any) -> None:
    directory, other = columns.write(8), columns.write(4)
    shutil.copy(other / "weights.safetensors", directory)
    with pytest.raises(UserError, match=r"weights\.safetensors: has no run \w+ of runs\.json"):
        sync(directory)


@pytest.mark.parametrize("same", [True, False])
def test_weights_of_another_training_of_the_same_runs_are_refused(columns: Any, same: bool) -> None:
    directory = columns.write(8)
    path, weights = directory / "runs.json", (directory / "weights.safetensors").read_bytes()
    record = json.loads(path.read_text())
    columns.write(8, weights={"stand_in": np.zeros(3, np.float32)})
    if same:
        (directory / "weights.safetensors").write_bytes(weights)
    record["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    path.write_text(json.dumps(record))
    with (
        nullcontext()
        if same
        else pytest.raises(
            UserError, match=r"weights\.safetensors: not of the training of runs\.json"
        )
    ):
        sync(directory)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_it_is_of_the_best_cell_by_the_median_over_seeds(
    columns: Any, tables: Any, seeds: int
) -> None:
    """As `metrics.json` has it, and of its seeds the one in the middle."""
    import pandas as pd

    from smallbatch.analysis.cells import summarise_cells
    from smallbatch.analysis.frames import load_results
    from smallbatch.analysis.generalisation import best_cells

    lrs = (2.0**-9, 2.0**-8, 2.0**-7, 2.0**-6, 2.0**-3)
    directory = columns.write(8, base_lrs=lrs, seeds=seeds, epochs=24, diverged=(2.0**-3,))
    best = best_cells(summarise_cells(load_results(columns.root).runs)).iloc[0]
    sync(directory)
    query = "select key, value from latest_metrics m join runs r using (run_uuid) "
    shown = dict(tables.query(query + "where r.name = 'm=8'"))
    assert shown["best_accuracy"] == pytest.approx(best["accuracy"])
    assert shown["best_base_lr"] == best["base_lr"]
    history = pd.read_parquet(directory / "history.parquet")
    cell = history[(history["base_lr"] == best["base_lr"]) & (history["epoch"] > 21)]
    medians = cell.groupby("run")["test_accuracy"].median().sort_values()
    tags = dict(tables.query("select tag_key, tag_value from logged_model_tags"))
    assert tags["smallbatch.run"] == medians.index[seeds // 2]


def test_a_column_of_diverged_runs_has_none(columns: Any, tables: Any) -> None:
    sync(columns.write(8, base_lrs=(2.0**-3,), diverged=(2.0**-3,)))
    assert tables.query("select value from tags where key = 'smallbatch.model'") == [("none",)]
    assert tables.query("select count(*) from logged_models") == [(0,)]


def test_a_column_without_weights_has_none(columns: Any, tables: Any) -> None:
    directory = columns.write(8, weights={})
    report = sync(directory)
    assert report.runs_created == 5
    assert tables.query("select count(*) from logged_models") == [(0,)]
    assert sync(directory).unchanged == 5


def test_a_constant_channel_keeps_its_scale(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from smallbatch.tracking.loadable import LoadableModel

    network = make_network(seed=3).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    facts: dict[str, Any] = {
        "model": "resnet8",
        "norm": "none",
        "batch_size": 8,
        "bn_batch_size": None,
    }
    facts |= {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.0]}
    facts["classes"] = list("0123456789")
    (tmp_path / "model.json").write_text(json.dumps(facts))
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    with torch.inference_mode():
        expected = torch.softmax(network(torch.from_numpy(images).float() / 255 - 0.5), 1).numpy()
    np.testing.assert_allclose(LoadableModel(tmp_path).predict(images), expected, rtol=1e-5)


def test_a_model_predicts_in_the_precision_that_it_was_evaluated_in(
    tmp_path: Path, columns: Any
) -> None:
    import torch
    from safetensors.torch import save_file

    from smallbatch.tracking.loadable import LoadableModel

    directory = columns.write(8)
    document = json.loads((directory / "runs.json").read_text())
    document["settings"]["precision"] = "bf16"
    (directory / "runs.json").write_text(json.dumps(document))
    facts = asdict(model_facts(read_column(directory)))
    network = make_network(seed=3).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), dtype=np.uint8)
    pixels = (torch.from_numpy(images).float() / 255 - 0.3) / 0.2

    def found(facts: dict[str, Any]) -> Any:
        (tmp_path / "model.json").write_text(json.dumps(facts))
        return LoadableModel(tmp_path).predict(images)

    with torch.inference_mode():
        older = torch.softmax(network(pixels), 1).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            expected = torch.softmax(network(pixels).float(), 1).numpy()
    np.testing.assert_allclose(found(facts), expected, rtol=1e-6)
    assert np.abs(expected - older).max() > 1e-4
    del facts["precision"]
    np.testing.assert_allclose(found(facts), older, rtol=1e-6)


def test_a_model_of_images_that_are_no_squares(tmp_path: Path) -> None:
    """The first fully connected layer of AlexNet has a weight for each pixel it sees."""
    from safetensors.torch import save_file

    from smallbatch.models import build_model
    from smallbatch.tracking.loadable import LoadableModel

    network = build_model(
        "alexnet", num_classes=2, in_chans=3, image_size=(24, 40), seed=1, batch_size=4
    )
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    facts = {
        "model": "alexnet", "norm": "none", "classes": ["ant", "bee"], "channels": 3,
        "height": 24, "width": 40, "batch_size": 4, "bn_batch_size": None,
        "mean": [0.5] * 3, "std": [0.25] * 3,
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(facts))
    found = LoadableModel(tmp_path).predict(np.zeros((5, 3, 24, 40), dtype=np.uint8))
    assert found.shape == (5, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)


def test_a_model_has_the_bn_batch_of_its_run_where_that_is_an_axis(columns: Any) -> None:
    directory = columns.write(8, base_lrs=(0.5,), seeds=1)
    path = directory / "runs.json"
    document = json.loads(path.read_text())
    document["settings"] |= {"norm": "ghost", "bn_batch_sizes": [4, 8]}
    document["runs"][0]["bn_batch_size"] = 4
    path.write_text(json.dumps(document))
    assert model_facts(read_column(directory)).bn_batch_size == 4
