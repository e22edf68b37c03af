"""The result files of all columns as two data frames: one row per run, one per epoch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.errors import UserError
from smallbatch.records.columns import (
    RUN_KEYS,
    find_columns,
    read_column,
    read_record,
    reported_accuracies,
    told_copy,
)
from smallbatch.records.schema import METRICS, POPULATION_METRICS, StudySettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from smallbatch.records.columns import ColumnFiles
    from smallbatch.records.reading import Kind
    from smallbatch.records.schema import ColumnRecord, RunRecord

# Settings that older result files do not have, with the values that were then used.
_SINCE = {
    "bn_batch_sizes": None,
    "budget": "epochs",
    "base_lr_from": None,
    "optimizer": "sgd",
    "momentum": None,
    "betas": None,
    "beta2_examples": None,
    "eps": None,
    "schedule": "step",
}

_KNOWN = frozenset(StudySettings.__annotations__)

ADAMW = "adamw"
"""The optimiser whose learning rate is η at every m, so that its studies' ``base_lr`` is η."""

GRID_KEYS = ["dataset", "study", "batch_size", "base_lr"]

RUNS: dict[str, Kind] = {
    **dict.fromkeys(("dataset", "study", "run", "outcome", "fingerprint"), "text"),
    **dict.fromkeys(
        ("batch_size", "seed", "protocol", "classes", "height", "width", "updates"), "whole"
    ),
    **dict.fromkeys(("diverged_at", "n_train", "n_validation", "n_test", "parameters"), "whole?"),
    **dict.fromkeys(("base_lr", "lr"), "number"),
    "scale": "text?",
    **dict.fromkeys(("budget", "model", "norm", "milestones", "precision"), "text"),
    **dict.fromkeys(("figure", "bn_batch_sizes", "base_lr_from"), "text?"),
    "augment": "truth",
    "epochs": "whole",
    **dict.fromkeys(("weight_decay", "lr_decay", "warmup"), "number"),
    **dict.fromkeys(("optimizer", "schedule"), "text"),
    "betas": "text?",
    **dict.fromkeys(("momentum", "beta2_examples", "eps"), "number?"),
    "bn_batch_size": "number?",
    **dict.fromkeys((*(f"final_{key}" for key in METRICS), *POPULATION_METRICS), "number?"),
    **dict.fromkeys(("seconds", "images_per_second", "generalisation_gap"), "number?"),
    **dict.fromkeys(("reported_accuracy", "reported_validation_accuracy"), "number?"),
}
"""Columns of the table of runs; a study's settings that are not known here come on top."""


@dataclass(frozen=True)
class Results:
    """The results of all complete columns in a models directory.

    Attributes:
        runs: One row per run: grid position, settings, outcome, accuracies in 0..1, losses.
        history: One row per run and epoch, with the data set's name as a further column.
        skipped: Directories of incomplete columns, relative to the models directory.
        set_aside: The names of the complete columns that were left out, see :func:`column_name`,
            sorted.
    """

    runs: pd.DataFrame
    history: pd.DataFrame
    skipped: tuple[str, ...]
    set_aside: tuple[str, ...] = ()


def column_name(record: ColumnRecord) -> str:
    """A column as ``<dataset>/<study>/m<m>``, wherever its files lie."""
    return f"{record.dataset.name}/{record.study}/m{record.batch_size}"


def load_results(models_dir: Path, wanted: Callable[[str], bool] = lambda _: True) -> Results:
    """Read every complete column.

    Args:
        models_dir: The directory of the columns, ``<dataset>/<study>/m<m>/``.
        wanted: Whether the column of a name, see :func:`column_name`, is to be read.

    Raises:
        UserError: There is nothing to read, or the file named in the message is damaged.
    """
    complete, unfinished = find_columns(models_dir)
    skipped = tuple(path.relative_to(models_dir).as_posix() for path in unfinished)
    if not complete:
        unfinished_text = f" ({len(skipped)} unfinished)" if skipped else ""
        raise UserError(
            f"{models_dir}: no complete column{unfinished_text}; train first (dvc repro)"
        )
    names = {path: column_name(read_record(path)) for path in complete}
    columns = [read_column(path) for path, name in names.items() if wanted(name)]
    set_aside = tuple(sorted({name for name in names.values() if not wanted(name)}))
    if not columns:
        raise UserError(
            f"{models_dir}: no complete column that params.yaml names, and "
            f"{len(set_aside)} more; train first (dvc repro), or `smallbatch evaluate --all`"
        )
    _refuse_copies(columns)
    history = pd.concat([column.history for column in columns], ignore_index=True)
    runs = pd.DataFrame([_run_row(column, run) for column in columns for run in column.record.runs])
    counts = [name for name, kind in RUNS.items() if kind == "whole?"]
    numbers = ("momentum", "beta2_examples", "eps")
    runs = runs.astype({**dict.fromkeys(counts, "Int64"), **dict.fromkeys(numbers, "float64")})
    runs = runs.merge(reported_accuracies(history), on=RUN_KEYS, validate="one_to_one")
    runs["generalisation_gap"] = runs["final_train_accuracy"] - runs["final_test_accuracy"]
    runs = runs.sort_values([*GRID_KEYS, "seed"], ignore_index=True)
    return Results(runs, history, skipped, set_aside)


def settings_of(runs: pd.DataFrame) -> list[str]:
    """The names of the data frame's columns with a study's settings."""
    names = [str(name) for name in runs.columns]
    return names[names.index("updates") + 1 : names.index("parameters")]


def on_bn_axis(runs: pd.DataFrame) -> pd.Series[bool]:
    """Whether each run belongs to a study of several BN batch sizes (paper, Figs. 13 and 14)."""
    return runs["bn_batch_sizes"].notna()


def on_lr_axis(frame: pd.DataFrame) -> bool:
    """Whether the learning rates of a study's grid are η: under AdamW; otherwise they are η̃.

    Args:
        frame: Rows of one study with the column ``optimizer``; in what is older it is missing.
    """
    return "optimizer" in frame and len(frame) > 0 and bool(frame["optimizer"].eq(ADAMW).all())


def _refuse_copies(columns: list[ColumnFiles]) -> None:
    places: dict[tuple[str | int | float | None, ...], Path] = {}
    for column in columns:
        dataset, study = column.record.dataset.name, column.record.study
        for run in column.record.runs:
            # Of other settings they have another hash, but the same place in the grid.
            at = (column.record.batch_size, run.bn_batch_size, run.base_lr, run.seed)
            other = places.setdefault((dataset, study, *at), column.directory)
            if other != column.directory:
                raise UserError(told_copy(column.directory, other, f"{dataset}/{study}"))


def _run_row(column: ColumnFiles, run: RunRecord) -> dict[str, Any]:
    record = column.record
    settings = {
        # Of a setting that is not known here, columns may have values of several kinds.
        key: json.dumps(value) if isinstance(value, list) or key not in _KNOWN else value
        for key, value in {**_SINCE, **record.settings}.items()
    }
    if run.bn_batch_size is not None:
        settings["bn_batch_size"] = run.bn_batch_size
    clock = column.timing.runs.get(run.run)
    place = {
        "dataset": record.dataset.name,
        "study": record.study,
        "batch_size": record.batch_size,
        "base_lr": run.base_lr,
        "lr": run.lr,
        "seed": run.seed,
        "run": run.run,
        "outcome": run.outcome,
        "diverged_at": run.diverged_at,
        "protocol": record.protocol,
        "scale": record.dataset.scale,
        "fingerprint": record.dataset.fingerprint,
        "classes": len(record.dataset.classes),
        "height": record.dataset.height,
        "width": record.dataset.width,
        **{f"n_{split}": n for split, n in record.dataset.counts.items()},
        "updates": run.updates,
    }
    results = {
        "parameters": run.parameters,
        **{f"final_{key}": _number(run.final.get(key)) for key in METRICS},
        **{key: _number(run.final.get(key)) for key in POPULATION_METRICS},
        "seconds": _number(clock and clock.seconds),
        "images_per_second": _number(clock and clock.images_per_second),
    }
    for key in settings:
        if key in place or key in results:
            raise UserError(
                f"{column.directory / 'runs.json'}: damaged, settings.{key}: no setting; "
                "train the column again"
            )
    return {**place, **settings, **results}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
