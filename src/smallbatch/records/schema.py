"""What `runs.json`, `timing.json` and `history.parquet` hold: for whoever writes or reads them.

A record checks what it is made of: wrong types, sizes and names are a pydantic `ValidationError`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypedDict  # pydantic takes Python's own only from 3.12 on

from smallbatch.data.prepared import Meta

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
    """Start (ISO 8601), duration, speed and DVC stage of a column, and how it was trained.

    Older files lack some of these; any others are kept as they are.
    """

    __pydantic_config__ = ConfigDict(  # pyright: ignore[reportGeneralTypeIssues]
        extra="allow", strict=True, allow_inf_nan=False
    )

    started: _Moment
    seconds: _Seconds
    images_per_second: float
    workers: int
    engine: str
    kernels: str | None
    device: str
    stage: str | None
    peak_memory_bytes: int


class Timing(_Record):
    """A whole `timing.json`: all that depends on the clock or the machine."""

    environment: dict[str, Any] = {}
    column: ColumnClock = {}
    runs: dict[str, Clock] = {}
