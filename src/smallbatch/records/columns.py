"""The one reader of a column's result files, and the paper's measure of a run.

Tracking mirrors these files and the analysis tabulates them; neither opens them itself.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from typing_extensions import TypedDict  # pydantic takes Python's own only from 3.12 on

from smallbatch.data.prepared import Meta
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

REPORTED_EPOCHS = 5
"""Epochs at the end of a run whose median accuracy is reported (Masters & Luschi 2018)."""

METRICS = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)
"""What is measured every epoch and, in evaluation mode, at a run's end; accuracies in 0..1."""

POPULATION_METRICS = ("population_test_loss", "population_test_accuracy")
"""At a run's end, with recomputed batch norm statistics."""

HISTORY = (
    *("run", "study", "batch_size", "base_lr", "seed", "epoch", "updates", "lr"),
    *METRICS,
    "outcome",
)
"""Columns of `history.parquet`, a row per run and epoch."""

RUN_KEYS = ["dataset", "study", "run"]
"""What tells one run from all others; its hash alone leaves out the names."""

_NUMBER = re.compile(r"^m(\d+)$")


# Names become those of figures, MLflow experiments and artifact folders: none may lead elsewhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"found {name!r}, allowed: letters, digits, dots, - and _")
    return name


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class RunRecord(_Record):
    """One run in `runs.json`.

    ``bn_batch_size`` is the sub-batch of ghost batch norm, ``updates`` the planned total,
    ``diverged_at`` counts updates from 1; ``final`` holds
    METRICS and POPULATION_METRICS, None where a value does not exist.
    """

    run: str
    base_lr: Annotated[float, Field(gt=0)]
    lr: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0)]
    bn_batch_size: int | None = None
    outcome: Literal["finished", "diverged"]
    diverged_at: Annotated[int, Field(ge=1)] | None
    updates: Annotated[int, Field(ge=0)]
    parameters: Annotated[int, Field(ge=0)]
    final: dict[str, float | None]


class ColumnRecord(_Record):
    """A whole `runs.json`; ``settings`` are the study's."""

    protocol: int
    dataset: Meta
    study: Annotated[str, AfterValidator(_plain_name)]
    batch_size: Annotated[int, Field(ge=1)]
    settings: dict[str, Any]
    runs: Annotated[tuple[RunRecord, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_are_names(self) -> Self:
        _plain_name(self.dataset.name)
        for key in ("model", "norm"):
            if not isinstance(self.settings.get(key), str):
                raise ValueError(f"settings.{key}: found no text")
        return self


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).timestamp() <= 0:
        raise ValueError(f"found {text!r}, allowed: moments after 1970")
    return text


_Moment = Annotated[str, AfterValidator(_moment)]
_Seconds = Annotated[float, Field(ge=0, le=1e9)]


class Clock(_Record):
    """Start and end (ISO 8601), share of its worker's seconds, and speed of a run."""

    started: _Moment
    ended: _Moment | None = None
    seconds: _Seconds
    images_per_second: float | None = None


class ColumnClock(TypedDict, total=False):
    """Start (ISO 8601), duration, speed and DVC stage of a column, and how it was trained."""

    __pydantic_config__ = ConfigDict(  # pyright: ignore[reportGeneralTypeIssues]
        extra="allow", strict=True, allow_inf_nan=False
    )

    started: _Moment
    seconds: _Seconds
    images_per_second: float
    stage: str | None


class Timing(_Record):
    """A whole `timing.json`: all that depends on the clock or the machine."""

    environment: dict[str, Any] = {}
    column: ColumnClock = {}
    runs: dict[str, Clock] = {}


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
    still being trained, or was interrupted.

    Raises:
        UserError: there is no such directory.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory; train first (dvc repro)")
    complete = {
        file.parent
        for file in folder.rglob("runs.json")
        if (file.parent / "history.parquet").is_file() and file.parent.suffix != ".part"
    }
    below = {parent for column in complete for parent in (column, *column.parents)}
    started = {path for path in folder.rglob("m*") if _NUMBER.match(path.name) and path.is_dir()}
    return sorted(complete, key=_order), sorted(started - below, key=_order)


def read_column(directory: Path) -> ColumnFiles:
    """Read a column.

    Raises:
        UserError: a file is missing or damaged, or the files contradict each other.
    """
    record = read_record(directory)
    path = directory / "history.parquet"
    history = _read_history(path)
    history["study"] = record.study
    history.insert(0, "dataset", record.dataset.name)
    told = [(run.run, run.base_lr, run.seed, run.outcome) for run in record.runs]
    held = history[["run", "base_lr", "seed", "outcome"]].drop_duplicates()
    differing = set(told) ^ set(held.itertuples(index=False, name=None))
    differing |= {run for run in told if told.count(run) > 1}
    if differing:
        names = sorted({str(run[0]) for run in differing})
        raise UserError(
            f"{path}: does not hold the same runs as runs.json ({', '.join(names[:3])}); "
            "train the column again"
        )
    return ColumnFiles(directory, record, history, read_timing(directory))


def read_record(directory: Path) -> ColumnRecord:
    """Read a column's `runs.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    return _parse(ColumnRecord, directory / "runs.json")


def read_timing(directory: Path) -> Timing:
    """Read a column's `timing.json`; empty where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = directory / "timing.json"
    return _parse(Timing, path) if path.is_file() else Timing()


def reported_accuracies(history: pd.DataFrame) -> pd.DataFrame:
    """The paper's measure of each run: its median accuracy over the last 5 epochs.

    Args:
        history: rows of `ColumnFiles.history`, of one column or of many, in any order.

    Returns:
        A row per run, indexed by RUN_KEYS: ``reported_accuracy`` of the test split and
        ``reported_validation_accuracy``; NaN for a diverged run and for an absent split.
    """
    last = history.sort_values([*RUN_KEYS, "epoch"]).groupby(RUN_KEYS).tail(REPORTED_EPOCHS)
    by_run = last.groupby(RUN_KEYS)
    medians = by_run[["test_accuracy", "validation_accuracy"]].median()
    medians.columns = ["reported_accuracy", "reported_validation_accuracy"]
    medians.loc[by_run["outcome"].first() == "diverged"] = math.nan
    return medians


_Parsed = TypeVar("_Parsed", bound=_Record)


def _parse(kind: type[_Parsed], path: Path) -> _Parsed:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise UserError(
            f"{path}: damaged, {where}: {first['msg']}; train the column again"
        ) from error


def _read_history(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path, columns=list(HISTORY))
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors, some both
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"{path}: cannot be read ({error})") from error
        found = str(error).splitlines()[0]
        raise UserError(f"{path}: damaged ({found}); train the column again") from error


def _order(path: Path) -> list[tuple[int, str]]:
    """Names in alphabetical order, batch sizes in numerical order."""
    numbers = [_NUMBER.match(part) for part in path.parts]
    return [
        (int(number.group(1)) if number else 0, part)
        for number, part in zip(numbers, path.parts, strict=True)
    ]
