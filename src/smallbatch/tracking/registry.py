"""The best model of each study in MLflow's model registry, under the alias `best`.

It is of the study's best cell: the highest median over seeds of the reported test accuracy, of
equals at the smaller m. Where there is no validation split, that is the answer in `metrics.json`.
Each model that has been the best has one version.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.config.base_lr import format_base_lr
from smallbatch.errors import UserError
from smallbatch.records.columns import find_columns, read_record
from smallbatch.text import count
from smallbatch.tracking import entries
from smallbatch.tracking.best_model import NO_MODEL
from smallbatch.tracking.existing import find_existing
from smallbatch.tracking.project import project_folder
from smallbatch.tracking.records import read_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

    from smallbatch.records.schema import ColumnRecord
    from smallbatch.tracking.records import ColumnInfo, TrackedColumn
    from smallbatch.tracking.store import Store

ALIAS = "best"
_EXPERIMENT, _MODEL = "smallbatch.experiment", "smallbatch.model"
_NO_REGISTRY = ("ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "NOT_FOUND", "NOT_IMPLEMENTED",
                "PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST")  # fmt: skip
"""What a server answers that has no registry, or none for this user. Other errors are told."""


def model_name(column: ColumnInfo) -> str:
    """The name of a study's registered model; MLflow allows no slash in it."""
    return f"{column.dataset}-{column.study}"


def register_best(store: Store, experiment_id: str, columns: Sequence[TrackedColumn]) -> None:
    """Let the alias name the best model of the study that these columns are of.

    A registry that is missing or refuses fails nothing: the model stays with its column's run.

    Args:
        store: The store, to which these columns have been written.
        experiment_id: The study's experiment.
        columns: Some columns of one study; its others are read from beside them.
    """
    from mlflow.exceptions import MlflowException

    if project_folder(Path.cwd()) != Path.cwd():
        return  # in an experiment's copy: it is the study's once it is applied
    own = [column for column in columns if column.info.single is None]
    best = _best(_whole_study(own)) if own else None
    if best is None:
        return
    parent = _logged(store, experiment_id, best)
    uri = parent.data.tags.get(entries.MODEL, NO_MODEL) if parent else NO_MODEL
    if parent is None or uri == NO_MODEL:  # it is not logged yet
        return
    try:
        _name_it(store, best, uri, parent.info.run_id)
    except NotImplementedError:
        return
    except MlflowException as error:
        if error.error_code not in _NO_REGISTRY:
            raise


def _logged(store: Store, experiment_id: str, column: TrackedColumn) -> Run | None:
    """The run of a column, or of an equal one of another folder, which is not logged again.

    Such as that of the project that this one was copied from, or of an experiment's copy.
    """
    found = find_existing(store, experiment_id, column.info.key)
    own = found.own(column.info)
    if own.parent is not None:
        return own.parent
    equal = [it for it in found.elsewhere(column.info) if it.shows(column)]
    return min(equal, key=lambda it: it.rank, default=own).parent


def _whole_study(columns: Sequence[TrackedColumn]) -> list[TrackedColumn]:
    """The columns of a study in one folder that params.yaml names, as `evaluate` takes them."""
    found = {column.directory.resolve(): column for column in columns}
    record = columns[0].info
    for directory in find_columns(columns[0].directory.parent)[0]:
        if directory.resolve() not in found:
            with suppress(UserError, OSError):
                if _is_of(read_record(directory), record):
                    found[directory.resolve()] = read_column(directory)
    return [column for column in found.values() if _is_named(column)]


def _is_of(record: ColumnRecord, column: ColumnInfo) -> bool:
    return (record.dataset.name, record.study) == (column.dataset, column.study)


def _is_named(column: TrackedColumn) -> bool:
    """Whether params.yaml names a column of its own data set; of others it says nothing."""
    from smallbatch.config.params import load_params

    here = Path.cwd() / "models"
    if not column.directory.resolve().is_relative_to(here.resolve()):
        return True
    with suppress(UserError):
        params = load_params()
        info = column.info
        return params.dataset.name != info.dataset or (
            (info.study, info.batch_size) in params.columns
        )
    return True


def _best(columns: Sequence[TrackedColumn]) -> TrackedColumn | None:
    """The column with the best cell; none of a study whose grid has BN batch sizes as well."""
    ranked = [
        (-column.best_cell.accuracy, column.info.batch_size, column)
        for column in columns
        if not column.info.settings.get("bn_batch_sizes")
        and column.best_cell is not None
        and column.best_cell.accuracy is not None
    ]
    return min(ranked, key=lambda it: it[:2])[2] if ranked else None


def _name_it(store: Store, column: TrackedColumn, uri: str, run_id: str) -> None:
    from mlflow.exceptions import MlflowException

    client, name, info = store.client, model_name(column.info), column.info
    try:
        registered = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        registered = client.create_registered_model(
            name,
            tags={_EXPERIMENT: info.experiment},
            description=(
                f"The best model of the study {info.study} on {info.dataset}, by its test "
                f"accuracy: the alias `{ALIAS}` names it. Load it by "
                f'`mlflow.pyfunc.load_model("models:/{name}@{ALIAS}")`; it takes uint8 pixels '
                "(N, C, H, W) and returns the probabilities of the classes."
            ),
        )
    if registered.tags.get(_EXPERIMENT) != info.experiment:
        return  # of somebody else, or of a study that gives the same name
    version = _version(store, name, column, uri, run_id)
    if str(registered.aliases.get(ALIAS)) != str(version.version):
        client.set_registered_model_alias(name, ALIAS, str(version.version))


def _version(store: Store, name: str, column: TrackedColumn, uri: str, run_id: str) -> ModelVersion:
    """The one version of a logged model, made if there is none yet."""
    for found in store.client.search_model_versions(f"name = '{name}'"):
        if found.tags.get(_MODEL) == uri:
            return found
    cell = column.best_cell
    if cell is None or cell.accuracy is None:
        raise ValueError(f"{column.directory}: no run finished")
    run, rate = cell.median_run, entries.rate_of(column.info)
    middle = "the one in the middle" if len(cell.runs) % 2 else "the better of the middle two"
    model_id = uri.removeprefix("models:/")
    source = uri
    if store.uri.kind in ("sqlite", "database"):
        # A client of a database looks `models:/` up where MLFLOW_TRACKING_URI points to, which
        # need not be this database.
        source = store.client.get_logged_model(model_id).artifact_location
    return store.client.create_model_version(
        name,
        source=source,
        run_id=run_id,
        model_id=model_id,
        tags={
            _MODEL: uri,
            entries.RUN: run.info.run,
            "batch_size": str(column.info.batch_size),
            "log2_base_lr": f"{math.log2(cell.base_lr):g}",
            "seed": str(run.info.seed),
        },
        description=(
            f"m = {column.info.batch_size}, {rate} = {format_base_lr(cell.base_lr)}: accuracy "
            f"{cell.accuracy:.4f} (median of {count(len(cell.runs), 'seed')}); these are the "
            f"weights of seed {run.info.seed}, {middle}, with {run.reported_accuracy:.4f}."
        ),
    )
