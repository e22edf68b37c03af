"""Names, params, tags and metrics of columns and runs in MLflow.

Params hold settings, metrics hold measurements by epoch. So there is a param `lr` (η = m·η̃ before
the schedule) and a metric `lr` (η of an epoch's last update). MLflow sorts params as text and
metrics as numbers: what a table of runs is sorted by, m and log₂ η̃, is logged as a metric too.
Under AdamW `base_lr` is η itself, and `log2_base_lr` is log₂ η.
Only finite values become metrics, because MLflow would store infinity as 1.8e308, which spoils
charts. A run that diverged has the metric `diverged` = 1 and the tag `outcome`; as a result it is
FINISHED in MLflow, where FAILED means that nothing came of a run.

The names are few, as MLflow draws a chart and offers a column for each.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from smallbatch.config.base_lr import format_base_lr
from smallbatch.records.schema import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smallbatch.tracking.records import ColumnInfo, RunInfo, TrackedColumn, TrackedRun

RUN, COLUMN, SYNCED = "smallbatch.run", "smallbatch.column", "smallbatch.synced"
MODEL = "smallbatch.model"
OUTCOME = "outcome"
LAYOUT = 2
"""The version of these names; what an older one logged is logged anew, once."""
PLACE, SUPERSEDED = "smallbatch.place", "smallbatch.superseded"
DISCARDED = "other results"
"""The value of SUPERSEDED on a column that is about to go to the trash."""
PARENT = "mlflow.parentRunId"

EPOCH_METRICS = (*METRICS, "lr")
FINAL_METRICS = {
    "train_accuracy": "final_train_accuracy",
    "population_test_accuracy": "population_test_accuracy",
}
"""Values measured once after the last update, with the names that they are logged by."""

_ENVIRONMENT_TAGS = ("device", "engine", "cpu", "gpu", "python", "torch", "smallbatch", "platform")
_OPTIONAL_TAGS = (
    "smallbatch.figure",
    "dvc.stage",
    "mlflow.source.git.commit",
    "smallbatch.git_dirty",
    *(f"smallbatch.{key}" for key in _ENVIRONMENT_TAGS),
    "smallbatch.diverged_at",
    SUPERSEDED,
)
"""Tags that some results have and others do not."""


_OF_AN_OPTIMISER = ("momentum", "betas", "beta2_examples", "eps")
_OF_STEP = ("milestones", "lr_decay")


class Point(NamedTuple):
    """One metric value."""

    key: str
    step: int
    value: float


def column_name(column: ColumnInfo) -> str:
    """Such as `m=8`."""
    return f"m={column.batch_size}"


def run_name(column: ColumnInfo, run: RunInfo) -> str:
    """Such as `m=8 η̃=2^-6 seed 0`; on an axis of BN batch sizes `m=8 b=4 η̃=2^-6 seed 0`."""
    axis = f" b={run.bn_batch_size}" if column.settings.get("bn_batch_sizes") else ""
    rate = f"{rate_of(column)}={format_base_lr(run.base_lr)}"
    return f"{column_name(column)}{axis} {rate} seed {run.seed}"


def column_params(column: ColumnInfo) -> dict[str, str]:
    """Settings that all runs of a column share; `figure` is a tag instead, as it may change.

    Of images that are kept encoded also the side of the crops; ``input`` is there where it is set.
    """
    params = {key: _text(value) for key, value in column.settings.items() if key != "figure"}
    # Of an optimiser's settings those that it has; in older files none is named.
    params = {"optimizer": "sgd", "schedule": "step"} | {
        key: text
        for key, text in params.items()
        if key not in _OF_AN_OPTIMISER or column.settings.get(key) is not None
    }
    if params["schedule"] != "step":
        params = {key: text for key, text in params.items() if key not in _OF_STEP}
    params["dataset"] = column.dataset
    params["study"] = column.study
    params["batch_size"] = str(column.batch_size)
    if column.image_size is not None:
        params["image_size"] = str(column.image_size)
    return params


def _adamw(column: ColumnInfo) -> bool:
    """Whether the learning rates of the column's grid are η, not η̃."""
    return column.settings.get("optimizer") == "adamw"


def rate_of(column: ColumnInfo) -> str:
    """What the learning rates of the column's grid are: η̃, under AdamW η."""
    return "η" if _adamw(column) else "η̃"


def run_params(column: ColumnInfo, run: RunInfo) -> dict[str, str]:
    """Everything that determines a run's result and that one may want to sort by."""
    params = column_params(column)
    params["base_lr"] = repr(run.base_lr)
    params["lr"] = repr(run.base_lr if _adamw(column) else column.batch_size * run.base_lr)
    params["seed"] = str(run.seed)
    params["updates"] = str(run.updates)
    if run.bn_batch_size is not None:
        params["bn_batch_size"] = str(run.bn_batch_size)
    return params


def column_tags(column: ColumnInfo) -> dict[str, str]:
    """Tags of a column and of all its runs."""
    environment = column.environment
    tags = {
        COLUMN: column.key,
        "smallbatch.fingerprint": column.fingerprint,
        "mlflow.source.name": "smallbatch",
        "mlflow.source.type": "LOCAL",
    }
    if column.place:
        tags[PLACE] = column.place
    if column.settings.get("figure"):
        tags["smallbatch.figure"] = str(column.settings["figure"])
    if column.stage:
        tags["dvc.stage"] = column.stage
    if environment.get("git_commit"):
        tags["mlflow.source.git.commit"] = str(environment["git_commit"])
    if environment.get("git_dirty") is not None:
        tags["smallbatch.git_dirty"] = str(bool(environment["git_dirty"])).lower()
    for key in _ENVIRONMENT_TAGS:
        if environment.get(key):
            tags[f"smallbatch.{key}"] = str(environment[key])
    return tags


def stale_tags(present: Iterable[str], wanted: Mapping[str, str]) -> list[str]:
    """Our tags that a run has, but should not have; those that somebody added are none of them."""
    return [key for key in _OPTIONAL_TAGS if key in present and key not in wanted]


def run_tags(column: ColumnInfo, run: RunInfo, parent_id: str) -> dict[str, str]:
    """Tags of a run when it is created."""
    return {**column_tags(column), RUN: run.run, PARENT: parent_id}


def result_tags(run: TrackedRun) -> dict[str, str]:
    """Tags of a run that has ended."""
    tags = {OUTCOME: run.record.outcome, SYNCED: run.digest}
    tags["smallbatch.parameters"] = str(run.record.parameters)
    if run.record.diverged_at is not None:
        tags["smallbatch.diverged_at"] = str(run.record.diverged_at)
    return tags


def epoch_points(row: Mapping[str, Any]) -> list[Point]:
    """The finite metrics of one epoch."""
    step = int(row["epoch"])
    return _finite((key, step, row.get(key)) for key in EPOCH_METRICS)


def setting_points(column: ColumnInfo, run: RunInfo) -> list[Point]:
    """What a table of runs is sorted by, as numbers."""
    return [
        Point("batch_size", 0, float(column.batch_size)),
        Point("log2_base_lr", 0, math.log2(run.base_lr)),
    ]


def result_points(column: ColumnInfo, run: TrackedRun) -> list[Point]:
    """All points of a run that has ended: every epoch, and final values at the last epoch."""
    points = setting_points(column, run.info)
    points += [point for row in run.rows for point in epoch_points(row)]
    last = int(run.rows[-1]["epoch"]) if run.rows else 0
    final = [(name, last, run.record.final.get(key)) for key, name in FINAL_METRICS.items()]
    final.append(("diverged", last, float(run.record.outcome == "diverged")))
    return points + _finite([*final, ("reported_accuracy", last, run.reported_accuracy)])


COLUMN_METRICS = ("runs_diverged", "best_accuracy", "best_base_lr", "images_per_second")


def column_points(column: TrackedColumn) -> list[Point]:
    """Metrics of a column that has ended; the best is its best cell, by the median over seeds."""
    best = column.best_cell
    values = (
        sum(run.record.outcome == "diverged" for run in column.runs),
        best.accuracy if best else None,
        best.base_lr if best else None,
        column.timing.get("images_per_second"),
    )
    return _finite((key, 0, it) for key, it in zip(COLUMN_METRICS, values, strict=True))


def system_points(column: TrackedColumn) -> list[Point]:
    """What a column's training took of the machine; MLflow shows these on a tab of their own."""
    samples = column.system.samples if column.system else ()
    return [
        Point(f"system/{name}", step, value)
        for step, sample in enumerate(samples)
        for name, value in sample.values.items()
    ]


def _finite(values: Iterable[tuple[str, int, Any]]) -> list[Point]:
    return [
        Point(key, step, float(value))
        for key, step, value in values
        if value is not None and math.isfinite(float(value))
    ]


def _text(value: Any) -> str:
    """The value as text; a tuple gives the same text as the list that JSON makes of it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, cast("Iterable[Any]", value))) + "]"
    return str(value)
