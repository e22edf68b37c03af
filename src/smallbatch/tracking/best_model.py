"""The best model of a column as a loadable MLflow model: weights and signature, without pickle.

`mlflow.pyfunc.load_model(uri).predict(images)` takes uint8 pixels (N, C, H, W) as in the data set,
normalises them and returns class probabilities (N, classes). Weights are taken from the column's
weights file, so that logging needs neither torch nor a forward pass, in contrast to
`mlflow.pytorch.log_model`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch import DISTRIBUTION, durable
from smallbatch.data.scratch import scratch_folder
from smallbatch.errors import UserError
from smallbatch.records.schema import CODE
from smallbatch.tracking import entries
from smallbatch.tracking.locks import own_folder
from smallbatch.tracking.superseded import models

if TYPE_CHECKING:
    from smallbatch.tracking.records import TrackedColumn
    from smallbatch.tracking.store import Store

LOADER = "smallbatch.tracking.loadable"
NO_MODEL = "none"
"""The tag's value for a column in which no run finished, or of which no weights were kept."""

_REQUIREMENTS = (DISTRIBUTION, "torch", "torchvision", "timm", "numpy", "safetensors")


@dataclass(frozen=True)
class ModelFacts:
    """What a model needs besides weights; stored in `model.json` of a logged model.

    Attributes:
        model: The name of the model.
        norm: Its norm.
        batch_size: m.
        bn_batch_size: The sub-batch of ghost batch norm.
        channels: The channels of the images.
        height: The height of the images.
        width: The width of the images.
        mean: The mean of pixels / 255, per channel.
        std: The standard deviation of pixels / 255, per channel.
        classes: The names of the classes, in the order of the outputs.
        precision: That in which it was trained and evaluated.
    """

    model: str
    norm: str
    batch_size: int
    bn_batch_size: int | None
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    precision: str


def model_facts(column: TrackedColumn) -> ModelFacts:
    """What a column's model needs besides weights."""
    info, dataset = column.info, column.dataset
    of_run = column.best.info.bn_batch_size if column.best else None  # where it is an axis
    return ModelFacts(
        model=info.settings["model"],
        norm=info.settings["norm"],
        batch_size=info.batch_size,
        bn_batch_size=of_run or info.settings.get("bn_batch_size"),
        channels=dataset.channels,
        height=dataset.height,
        width=dataset.width,
        mean=dataset.mean,
        std=dataset.std,
        classes=dataset.classes,
        precision=info.settings["precision"],
    )


def log_best_model(store: Store, experiment_id: str, column: TrackedColumn, parent_id: str) -> str:
    """Log the model of the column's best cell to the column's parent run.

    Returns:
        Its URI, `models:/<id>`, or `none` if no run finished, or no weights were kept.
    """
    from mlflow.entities import LoggedModelOutput

    best = column.best
    if best is None or _is_without_weights(column.directory):
        return NO_MODEL
    client = store.client
    tags = {entries.RUN: best.info.run, entries.SYNCED: best.digest}
    found = models(store, experiment_id, parent_id)
    found.sort(key=lambda it: str(it.status) != "READY")
    for doubled in found[1:]:
        client.delete_logged_model(doubled.model_id)
    logged = found[0] if found else None  # of a replay that was interrupted, perhaps
    if logged is None:
        logged = client.create_logged_model(
            experiment_id,
            name="best",
            source_run_id=parent_id,
            tags=tags,
            params=entries.run_params(column.info, best.info),
            model_type="classifier",
        )
    elif entries.SUPERSEDED in logged.tags:  # it is the best again
        client.delete_logged_model_tag(logged.model_id, entries.SUPERSEDED)
    if str(logged.status) != "READY":
        # Not in the temporary folder, where the weights would stay if this process is killed.
        with scratch_folder(own_folder(), "model") as folder:
            save_model(folder / "model", column, model_id=logged.model_id, run_id=parent_id)
            store.log_model_files(column.info.experiment, logged, folder / "model")
        client.finalize_logged_model(logged.model_id, "READY")
    outputs = client.get_run(parent_id).outputs
    if logged.model_id not in {it.model_id for it in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(parent_id, [LoggedModelOutput(logged.model_id, 0)])
    return f"models:/{logged.model_id}"


def _is_without_weights(directory: Path) -> bool:
    """Whether a weights file is whole and empty, as of a training that was to keep none."""
    from safetensors import SafetensorError, safe_open

    path = directory / "weights.safetensors"
    try:
        if not path.is_file():  # opening a pipe would wait
            return False
        with safe_open(path, "numpy") as file:
            return not file.keys()
    except (SafetensorError, OSError):
        return False


def save_model(target: Path, column: TrackedColumn, *, model_id: str, run_id: str) -> None:
    """Write the best model of a column as an MLflow model directory.

    Raises:
        OSError: The weights file is missing.
        UserError: The weights file is damaged, or of another training than `runs.json`.
    """
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    best = column.best
    if best is None:
        raise ValueError(f"{column.directory}: no run finished")
    facts = model_facts(column)
    data = target.with_name("data")
    data.mkdir()
    path, prefix = column.directory / "weights.safetensors", f"{best.info.run}/"
    durable.check_regular(path)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if column.weights_sha256 not in (None, found):
        raise UserError(f"{path}: not of the training of runs.json; train the column again")
    try:
        with safe_open(path, "numpy") as file:
            code = (file.metadata() or {}).get(CODE, "{}")
            weights = {
                key.removeprefix(prefix): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118 - not a mapping
                if key.startswith(prefix)
            }
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); train the column again") from error
    if not weights:
        raise UserError(f"{path}: has no run {best.info.run} of runs.json; train the column again")
    save_file(weights, data / "weights.safetensors")
    _save_code(data / CODE, code)
    (data / "model.json").write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")
    image = (-1, facts.channels, facts.height, facts.width)
    mlflow.pyfunc.save_model(
        target,
        loader_module=LOADER,
        data_path=str(data),
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype("uint8"), image)]),
            Schema([TensorSpec(np.dtype("float32"), (-1, len(facts.classes)))]),
        ),
        # By default MLflow would load the model in a new process and access the network.
        pip_requirements=_requirements(),
        metadata=_model_metadata(column),
    )


def _save_code(target: Path, code: str) -> None:
    """Write the user's own modules as they were kept beside the weights."""
    for name, text in json.loads(code).items():
        path = target / name
        if not path.resolve().is_relative_to(target.resolve()):
            raise UserError(f"code of the model: found {name!r}, allowed: paths below a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _requirements() -> list[str]:
    pins: list[str] = []
    for name in _REQUIREMENTS:
        try:
            pins.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            pins.append(name)
    return pins


def _model_metadata(column: TrackedColumn) -> dict[str, Any]:
    info, cell, best = column.info, column.best_cell, column.best
    return {
        "dataset": info.dataset,
        "fingerprint": info.fingerprint,
        "study": info.study,
        "batch_size": info.batch_size,
        "base_lr": best.info.base_lr if best else None,
        "seed": best.info.seed if best else None,
        "reported_accuracy": best.reported_accuracy if best else None,
        "best_accuracy": cell.accuracy if cell else None,
    }
