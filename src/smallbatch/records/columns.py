"""Reads the tables of a column's result files, and computes the reported accuracy of a run.

Tracking and analysis read `runs.json`, `history.parquet` and `timing.json` through this module.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.errors import Missing, UserError
from smallbatch.protocol.run import run_hash
from smallbatch.records.reading import read_json, read_table
from smallbatch.records.schema import HISTORY, ColumnRecord, RunRecord, Timing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

MOST_REPORTED_EPOCHS = 5
"""Epochs at the end of a run whose median accuracy the paper reports (Masters & Luschi 2018)."""

RUN_KEYS = ["dataset", "study", "run"]
"""What tells one run from all others; its hash alone leaves out the names."""

_LAST = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
"""What is the same at the end of a run's last epoch and at its end; training's is a mean."""

_ADVICE = "train the column again"
_NUMBER = re.compile(r"^m(\d+)$")
_HASH = re.compile(r"^[0-9a-f]{16}$")


@dataclass(frozen=True)
class ColumnFiles:
    """One column directory, read.

    Attributes:
        directory: Where it lies.
        record: Its `runs.json`.
        history: Its `history.parquet`, led by a column with the data set's name.
        timing: Its `timing.json`; empty where that is missing.
    """

    directory: Path
    record: ColumnRecord
    history: pd.DataFrame
    timing: Timing


def find_columns(folder: Path) -> tuple[list[Path], list[Path]]:
    """Column directories at or below a folder, in the order of their names: complete, unfinished.

    A column's files are put in place together, at its end: a directory ``m<m>`` without them is
    still being trained, or was interrupted; so was one of which there is only what a killed writer
    set aside. Links are followed. Folders that cannot be opened, and links that lead nowhere, are
    named with the unfinished columns, since there may be some behind them.

    Raises:
        UserError: there is no such directory.
    """
    if not folder.is_dir():
        raise Missing(f"{folder}: no such directory; train first (dvc repro)")
    complete, started = set[Path](), set[Path]()
    for path, names in _folders(folder):
        if path.suffix == ".part":
            name = path.name.split(".")[0]
            started |= {path.with_name(name)} if _NUMBER.match(name) else set()
        elif names is None or (_NUMBER.match(path.name) and path != folder):
            started.add(path)
        if names and {"runs.json", "history.parquet"} <= names and path.suffix != ".part":
            complete.add(path)
    below = {parent for column in complete for parent in (column, *column.parents)}
    return sorted(complete, key=_order), sorted(started - below, key=_order)


def _folders(top: Path) -> Iterator[tuple[Path, set[str] | None]]:
    """Each folder at or below one, with the names in it; None where it cannot be opened.

    Of what a writer has not put in place yet, ``NAME.part``, only the folder itself.
    """
    seen, folders, linked = set[tuple[int, int]](), [top], list[Path]()
    while folders or linked:
        path = (folders or linked).pop()  # by its own place rather than by a link, if it has both
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in seen:  # links may lead in a circle
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                inside = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            if path.is_symlink() or path.exists():  # else it was deleted or renamed meanwhile
                yield path, None
            continue
        for entry in inside if path.suffix != ".part" or path == top else []:
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_symlink() and not entry.is_file():
                linked.append(Path(entry.path))
        yield path, {entry.name for entry in inside}


def is_single(directory: Path) -> bool:
    """Whether a directory is named after a run's hash, as that of a run outside a pipeline is."""
    return bool(_HASH.match(directory.absolute().name))


def told_copy(directory: Path, other: Path, study: str) -> str:
    """Say that two directories hold the same runs of a study, `<dataset>/<study>`."""
    return (
        f"{directory}: holds runs of {study} that {other} holds too; move one of the two elsewhere"
    )


def read_column(directory: Path) -> ColumnFiles:
    """Read a column.

    Raises:
        UserError: a file is missing or damaged, or the files contradict each other.
    """
    record = read_record(directory)
    path = directory / "history.parquet"
    history = read_table(path, HISTORY, _ADVICE)[list(HISTORY)]
    for name in ("train_accuracy", "validation_accuracy", "test_accuracy"):
        if not (history[name].isna() | history[name].between(0, 1)).all():
            raise UserError(f"{path}: damaged, column {name!r}: allowed: 0 to 1; {_ADVICE}")
    history["study"] = record.study
    history.insert(0, "dataset", record.dataset.name)
    m = record.batch_size
    told = [(run.run, m, run.base_lr, run.seed, run.outcome) for run in record.runs]
    held = history[["run", "batch_size", "base_lr", "seed", "outcome"]].drop_duplicates()
    differing = set(told) ^ set(held.itertuples(index=False, name=None))
    differing |= {run for run in told if told.count(run) > 1}
    if differing:
        names = sorted({str(run[0]) for run in differing})
        raise UserError(
            f"{path}: does not hold the same runs as runs.json ({', '.join(names[:3])}); {_ADVICE}"
        )
    _check_ends(path, record, history)
    return ColumnFiles(directory, record, history, read_timing(directory, record))


def read_record(directory: Path) -> ColumnRecord:
    """Read a column's `runs.json`.

    Raises:
        UserError: it is missing or damaged, or of another column or run than the directory's name
            says.
    """
    record, place = read_json(ColumnRecord, directory / "runs.json", _ADVICE), directory.absolute()
    if number := _NUMBER.match(place.name):  # DATASET/STUDY/mM, or a copy of mM somewhere
        in_place = place.parent.parent.name == record.dataset.name
        study = place.parent.name if in_place else record.study
        if (number.group(1), study) != (str(record.batch_size), record.study):
            raise UserError(
                f"{directory / 'runs.json'}: is of study {record.study} at m={record.batch_size}, "
                "which belongs elsewhere; move the folder to its place or delete it"
            )
    if len(counts := sorted({run.parameters for run in record.runs})) > 1:
        raise UserError(
            f"{directory / 'runs.json'}: its runs are of different models, of "
            f"{' and '.join(map(str, counts))} parameters; delete the folder and train again"
        )
    if is_single(place):
        named, hashed = {run.run for run in record.runs}, {_hash(record, it) for it in record.runs}
        if differing := sorted((named | hashed) - {place.name}):
            raise UserError(
                f"{directory / 'runs.json'}: is of run {differing[0]}, not of that which the "
                "folder is named after; run that again or delete the folder"
            )
    return record


def _hash(record: ColumnRecord, run: RunRecord) -> str:
    """The hash of a run from its recorded settings."""
    settings = {key: value for key, value in record.settings.items() if key != "base_lr_from"}
    return run_hash(
        settings | {"bn_batch_size": run.bn_batch_size},
        protocol=record.protocol,
        fingerprint=record.dataset.fingerprint,
        batch_size=record.batch_size,
        base_lr=run.base_lr,
        seed=run.seed,
        model_digest=record.model_digest,
    )


def read_timing(directory: Path, record: ColumnRecord) -> Timing:
    """Read a column's `timing.json`; empty where there is none.

    Args:
        directory: The column's.
        record: Its `runs.json`.

    Raises:
        UserError: it is damaged, or of other runs than the record's.
    """
    path = directory / "timing.json"
    if not path.exists():
        return Timing()
    timing = read_json(Timing, path, _ADVICE)
    if differing := set(timing.runs) ^ {run.run for run in record.runs} if timing.runs else set():
        raise UserError(
            f"{path}: does not hold the same runs as runs.json ({', '.join(sorted(differing)[:3])})"
            f"; {_ADVICE}, or delete this file"
        )
    return timing


def reported_epochs(epochs: int) -> int:
    """How many epochs at the end of a run the reported accuracy is the median over.

    The last eighth of the run, rounded down, but at least 1 and at most 5. The paper takes 5, of 41
    epochs or more. Of a short training 5 are much, or all, of it, with the learning rate not yet
    lowered for the last time (docs/decisions.md).

    Args:
        epochs: The planned epochs of the run, 1 or more.
    """
    return min(max(epochs // 8, 1), MOST_REPORTED_EPOCHS)


def reported_accuracies(history: pd.DataFrame) -> pd.DataFrame:
    """The measure of each run: the median of its accuracy over its last `reported_epochs`.

    The rows of a finished run are its planned epochs, each once: `read_column` sees to that.

    Args:
        history: rows of `ColumnFiles.history`, of one column or of many, in any order.

    Returns:
        A row per run, indexed by RUN_KEYS: ``reported_accuracy`` of the test split and
        ``reported_validation_accuracy``; NaN for a diverged run and for an absent split.
    """
    epochs = history.groupby(RUN_KEYS)["epoch"].transform("max")
    by_run = history[history["epoch"] > epochs - epochs.map(reported_epochs)].groupby(RUN_KEYS)
    medians = by_run[["test_accuracy", "validation_accuracy"]].median()
    medians.columns = ["reported_accuracy", "reported_validation_accuracy"]
    medians.loc[by_run["outcome"].first() == "diverged"] = math.nan
    return medians


def _check_ends(path: Path, record: ColumnRecord, history: pd.DataFrame) -> None:
    """Refuse a history that lacks epochs, or is of another training than `runs.json`.

    Each run's epochs follow each other from 1 to its last update: the last planned one, or that at
    which the run diverged. A finished run has as many as planned, and its last one has the final
    values, to the bit.
    """
    planned = record.settings["epochs"]
    finals = {run.run: run.final for run in record.runs if run.outcome == "finished"}
    ends = {
        run.run: run.updates if run.outcome == "finished" else run.diverged_at
        for run in record.runs
    }
    for name, own in history.sort_values("epoch").groupby("run"):
        epochs, last = own["epoch"].tolist(), own["updates"].iloc[-1]
        gaps = epochs != [*range(1, len(epochs) + 1)] or last != ends[str(name)]
        if gaps or (str(name) in finals and len(epochs) != planned):
            raise UserError(
                f"{path}: run {name}: epochs: found {len(epochs)}, the last to update {last}, "
                f"allowed: all epochs to update {ends[str(name)]}, of {planned} planned, as "
                f"runs.json says; {_ADVICE}"
            )
        for metric, final in finals.get(str(name), {}).items():
            found = own[metric].iloc[-1] if metric in _LAST else None
            if found is not None and final != (found if math.isfinite(found) else None):
                raise UserError(
                    f"{path}: not of the training of runs.json (run {name}: {metric}: found "
                    f"{found}, there {final}); {_ADVICE}"
                )


def _order(path: Path) -> list[tuple[int, str]]:
    """Names in alphabetical order, batch sizes in numerical order."""
    numbers = [_NUMBER.match(part) for part in path.parts]
    return [
        (int(number.group(1)) if number else 0, part)
        for number, part in zip(numbers, path.parts, strict=True)
    ]
