"""Read the result files of all columns into two data frames: one row per run, one per epoch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from smallbatch.errors import UserError

# The paper reports the median of the test accuracy over the last 5 epochs (section 2).
REPORTED_EPOCHS = 5

HISTORY_COLUMNS = (
    "run",
    "study",
    "batch_size",
    "base_lr",
    "seed",
    "epoch",
    "updates",
    "lr",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "outcome",
)
FINAL_KEYS = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "validation_loss",
    "validation_accuracy",
    "population_test_loss",
    "population_test_accuracy",
)
GRID_KEYS = ["dataset", "study", "batch_size", "base_lr"]
OUTCOMES = ("finished", "diverged")


@dataclass(frozen=True)
class Results:
    """All that the complete columns under one models directory hold.

    Attributes:
        runs: one row per run: grid position, settings, outcome, accuracies in 0..1, losses.
        history: one row per run and epoch, with the data set's name as a further column.
        skipped: directories of columns that are not complete, relative to the models directory.
    """

    runs: pd.DataFrame
    history: pd.DataFrame
    skipped: tuple[str, ...]


def find_columns(models_dir: Path) -> tuple[list[Path], list[Path]]:
    """List the column directories ``<dataset>/<study>/m<m>``: complete ones, unfinished ones.

    A column's files are put in place at its end, so one that lacks its history or its runs is
    still being trained or was interrupted.

    Raises:
        UserError: there is no such directory.
    """
    if not models_dir.is_dir():
        raise UserError(f"{models_dir}: no such directory; train first (dvc repro)")
    found = [
        path
        for path in models_dir.glob("*/*/m*")
        if path.is_dir() and path.name.removeprefix("m").isdigit()
    ]
    found.sort(key=lambda path: (path.parent.parent.name, path.parent.name, int(path.name[1:])))
    complete = [path for path in found if _is_complete(path)]
    return complete, [path for path in found if path not in set(complete)]


def load_results(models_dir: Path, data_dir: Path = Path("data")) -> Results:
    """Read every complete column.

    Args:
        models_dir: holds ``<dataset>/<study>/m<m>/`` with ``runs.json`` and ``history.parquet``.
        data_dir: where ``prepared/<dataset>/meta.json`` is looked up for the number of classes and
            examples, when a column does not state them itself.

    Raises:
        UserError: nothing to read, or a file that is damaged (named in the message).
    """
    complete, unfinished = find_columns(models_dir)
    skipped = tuple(path.relative_to(models_dir).as_posix() for path in unfinished)
    if not complete:
        unfinished_text = f" ({len(skipped)} unfinished)" if skipped else ""
        raise UserError(
            f"{models_dir}: no complete column{unfinished_text}; train first (dvc repro)"
        )
    columns = [_read_column(path, data_dir) for path in complete]
    history = pd.concat([history for _, history in columns], ignore_index=True)
    runs = pd.DataFrame([row for rows, _ in columns for row in rows])
    runs["diverged_at"] = runs["diverged_at"].astype("Int64")
    for key in ("n_train", "n_validation", "n_test", "parameters"):
        runs[key] = runs[key].astype("Int64")
    runs = runs.merge(summarise_history(history), on="run", how="left", validate="one_to_one")
    diverged = runs["outcome"] == "diverged"
    runs.loc[diverged, ["reported_accuracy", "reported_validation_accuracy"]] = math.nan
    runs["generalisation_gap"] = runs["final_train_accuracy"] - runs["final_test_accuracy"]
    runs = runs.sort_values([*GRID_KEYS, "seed"], ignore_index=True)
    return Results(runs, history, skipped)


def summarise_history(history: pd.DataFrame) -> pd.DataFrame:
    """One row per run out of its epochs.

    Returns:
        ``reported_accuracy`` (the median of the test accuracy over the last 5 epochs, paper
        section 2), the same of the validation split, and the epoch of the best test accuracy (the
        first one of equals). Whether the run finished is not looked at.
    """
    ordered = history.sort_values(["run", "epoch"], ignore_index=True)
    last = ordered.groupby("run", sort=False).tail(REPORTED_EPOCHS).groupby("run")
    summary = pd.DataFrame(
        {
            "reported_accuracy": last["test_accuracy"].median(),
            "reported_validation_accuracy": last["validation_accuracy"].median(),
            "epochs_run": ordered.groupby("run")["epoch"].max(),
        }
    )
    seen = ordered.dropna(subset=["test_accuracy"])
    best = seen.loc[seen.groupby("run")["test_accuracy"].idxmax()].set_index("run")
    summary["best_epoch"] = best["epoch"].reindex(summary.index).astype("Int64")
    summary["best_test_accuracy"] = best["test_accuracy"].reindex(summary.index)
    return summary.reset_index()


def mixed_settings(runs: pd.DataFrame) -> list[str]:
    """Name what differs between the columns of one study, where nothing should.

    Columns left over from an earlier edit of the data or of the settings make a study that is not
    one experiment; its curves must then not be read as one.
    """
    fixed = [
        key
        for key in ("fingerprint", "protocol", *settings_of(runs))
        if key in runs and key not in ("base_lrs", "figure")
    ]
    lines: list[str] = []
    for (dataset, study), group in runs.groupby(["dataset", "study"]):
        counts = group[fixed].nunique(dropna=False)
        differing = [str(key) for key in counts.index[counts > 1]]
        if differing:
            lines.append(
                f"{dataset}/{study}: its columns were trained with different "
                f"{', '.join(differing)}; train the older ones again"
            )
    return lines


def settings_of(runs: pd.DataFrame) -> list[str]:
    """Names of the columns that hold a study's settings, as `load_results` lays them out."""
    names = [str(name) for name in runs.columns]
    return names[names.index("updates") + 1 : names.index("parameters")]


def _is_complete(column: Path) -> bool:
    return all((column / name).is_file() for name in ("runs.json", "history.parquet"))


def _read_column(column: Path, data_dir: Path) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    path = column / "runs.json"
    content = read_json(path)
    timing = read_json(column / "timing.json") if (column / "timing.json").is_file() else {}
    try:
        shape = _data_shape(content["dataset"], data_dir, path)
        rows = [_run_row(content, run, shape, timing) for run in content["runs"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, cannot find {error}; train the column again") from error
    history = _read_history(column / "history.parquet")
    history.insert(0, "dataset", str(content["dataset"]["name"]))
    missing = {row["run"] for row in rows} ^ set(history["run"])
    if missing:
        raise UserError(
            f"{column / 'history.parquet'}: does not hold the same runs as runs.json "
            f"({', '.join(sorted(missing)[:3])}); train the column again"
        )
    return rows, history


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        UserError: it cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or unreadable ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content  # pyright: ignore[reportUnknownVariableType]


def _read_history(path: Path) -> pd.DataFrame:
    try:
        history = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"{path}: damaged or unreadable ({error})") from error
    missing = [name for name in HISTORY_COLUMNS if name not in history]
    if missing:
        raise UserError(f"{path}: lacks the columns {', '.join(missing)}; train the column again")
    return history.loc[:, list(HISTORY_COLUMNS)]


def _data_shape(dataset: dict[str, Any], data_dir: Path, source: Path) -> dict[str, int | None]:
    """Numbers of classes and examples: the column's own, or those of the prepared data it used."""
    stated = dataset
    meta_path = data_dir / "prepared" / str(dataset["name"]) / "meta.json"
    if "classes" not in dataset and meta_path.is_file():
        meta = read_json(meta_path)
        if meta.get("fingerprint") == dataset["fingerprint"]:
            stated = meta
    if "classes" not in stated:
        raise UserError(
            f"{source}: the number of classes of {dataset['name']!r} is not stated, and "
            f"{meta_path} does not describe the data it was trained on; run smallbatch prepare"
        )
    classes = stated["classes"]
    counts = stated.get("counts", {})
    return {
        "classes": classes if isinstance(classes, int) else len(classes),
        "n_train": counts.get("train"),
        "n_validation": counts.get("validation"),
        "n_test": counts.get("test"),
    }


def _run_row(
    content: dict[str, Any],
    run: dict[str, Any],
    shape: dict[str, int | None],
    timing: dict[str, Any],
) -> dict[str, Any]:
    if run["outcome"] not in OUTCOMES:
        raise KeyError(f"outcome in {OUTCOMES}, found {run['outcome']!r}")
    settings = {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in content["settings"].items()
    }
    finals = {
        f"final_{key}" if not key.startswith("population") else key: _number(run["final"][key])
        for key in FINAL_KEYS
    }
    seconds = timing.get("runs", {}).get(run["run"], {})
    return {
        "dataset": content["dataset"]["name"],
        "study": content["study"],
        "batch_size": int(content["batch_size"]),
        "base_lr": float(run["base_lr"]),
        "lr": float(run["lr"]),
        "seed": int(run["seed"]),
        "run": run["run"],
        "outcome": run["outcome"],
        "diverged_at": run["diverged_at"],
        "protocol": content["protocol"],
        "fingerprint": content["dataset"]["fingerprint"],
        **shape,
        "updates": int(run["updates"]),
        **settings,
        "parameters": run["parameters"],
        **finals,
        "seconds": _number(seconds.get("seconds")),
        "images_per_second": _number(seconds.get("images_per_second")),
    }


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
