"""What `runs.json`, `timing.json` and `history.parquet` hold: for whoever writes or reads them.

A record checks what it is made of: wrong types, sizes and names are a pydantic `ValidationError`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal, Required, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)
from typing_extensions import TypedDict  # pydantic takes Python's own only from 3.12 on

from smallbatch.data.prepared import SPLITS, Meta, as_json
from smallbatch.records.reading import Kind

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

HISTORY: dict[str, Kind] = {
    "run": "text",
    "study": "text",
    "batch_size": "whole",
    "base_lr": "number",
    "seed": "whole",
    "epoch": "whole",
    "updates": "whole",
    "lr": "number",
    **dict.fromkeys(METRICS, "number?"),
    "outcome": "text",
}
"""Columns of `history.parquet`, a row per run and epoch."""

CODE = "code"
"""In the metadata of `weights.safetensors`, the source of a model of the user's own by path."""

MOST = 2**31 - 1  # of any count: what can be trained is far below, and tables can hold it
_LONG = 2**63 - 1  # of updates and weights
_Count = Annotated[int, Field(ge=0, le=MOST)]

# Names become those of figures, MLflow experiments and artifact folders: none may lead elsewhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"found {name!r}, allowed: letters, digits, dots, - and _")
    return name


def _whole_meta(meta: Meta) -> Meta:
    _plain_name(meta.name)
    if sorted(meta.counts) != sorted(SPLITS):
        raise ValueError(f"counts: found {sorted(meta.counts)}, allowed: {sorted(SPLITS)}")
    for value in (meta.channels, meta.height, meta.width, *meta.counts.values()):
        if not 0 <= value <= MOST:
            raise ValueError(f"found {value}, allowed: sizes and counts up to {MOST}")
    if len(meta.classes) < 2:
        raise ValueError(f"classes: found {len(meta.classes)}, allowed: 2 or more")
    return meta


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


_Share = Annotated[float, Field(ge=0, le=1)]
_Number = Annotated[float, Field(ge=0)]


class StudySettings(TypedDict, total=False):
    """The settings of a study; older files lack some; any others are kept as they are."""

    __pydantic_config__ = ConfigDict(  # pyright: ignore[reportGeneralTypeIssues]
        extra="allow", strict=True, allow_inf_nan=False
    )

    model: Required[str]
    norm: Required[str]
    bn_batch_size: Required[_Count | None]
    augment: Required[bool]
    epochs: Required[_Count]
    weight_decay: Required[_Number]
    milestones: Required[list[_Share]]
    lr_decay: Required[_Number]
    warmup: Required[_Share]
    precision: Required[str]
    figure: Required[str | None]
    bn_batch_sizes: list[_Count] | None
    budget: str
    base_lr_from: str | None
    base_lrs: list[_Number] | None
    optimizer: str
    momentum: _Share | None
    betas: list[_Share] | None
    beta2_examples: _Number | None
    eps: _Number | None
    schedule: str


class RunRecord(_Record):
    """One run in `runs.json`.

    ``bn_batch_size`` is the sub-batch of ghost batch norm, ``updates`` the planned total,
    ``diverged_at`` counts updates from 1; ``final`` holds
    METRICS and POPULATION_METRICS, None where a value does not exist.
    """

    run: str
    base_lr: Annotated[float, Field(gt=0)]
    lr: Annotated[float, Field(gt=0)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    bn_batch_size: _Count | None = None
    outcome: Literal["finished", "diverged"]
    diverged_at: Annotated[int, Field(ge=1, le=_LONG)] | None
    updates: Annotated[int, Field(ge=0, le=_LONG)]
    parameters: Annotated[int, Field(ge=0, le=_LONG)]
    final: dict[str, float | None]

    @model_validator(mode="after")
    def _accuracies_are_shares(self) -> Self:
        for name, value in self.final.items():
            if name.endswith("accuracy") and value is not None and not 0 <= value <= 1:
                raise ValueError(f"final.{name}: found {value}, allowed: 0 to 1")
        return self


class ColumnRecord(_Record):
    """A whole `runs.json`.

    ``settings`` are the study's, ``model_digest`` is the runs', ``weights_sha256`` is that of
    `weights.safetensors`; older files lack the latter two.
    """

    protocol: _Count
    dataset: Annotated[Meta, AfterValidator(_whole_meta), PlainSerializer(as_json)]
    study: Annotated[str, AfterValidator(_plain_name)]
    batch_size: Annotated[int, Field(ge=1, le=MOST)]
    settings: StudySettings
    runs: Annotated[tuple[RunRecord, ...], Field(min_length=1)]
    weights_sha256: str | None = None
    model_digest: str = ""

    @model_validator(mode="after")
    def _runs_fit_the_settings(self) -> Self:
        if self.settings.get("bn_batch_sizes"):
            for run in self.runs:
                if run.bn_batch_size is None:
                    raise ValueError(f"run {run.run}: bn_batch_size: found none")
        return self


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).timestamp() <= 0:
        raise ValueError(f"found {text!r}, allowed: moments after 1970")
    return text


_Moment = Annotated[str, AfterValidator(_moment)]
_Seconds = Annotated[float, Field(ge=0, le=1e9)]


Environment = dict[str, str | int | float | bool | None]
"""Machine, versions, commit and number of workers of a training."""


class Clock(_Record):
    """Start and end (ISO 8601), share of its worker's seconds, and speed of a run.

    ``environment`` is that of the run; in `timing.json` only what is not the same for all runs of
    the column, as where some were trained later, with other code or on another machine.
    """

    started: _Moment
    ended: _Moment | None = None
    seconds: _Seconds
    images_per_second: float | None = None
    environment: Environment = {}


class ColumnClock(TypedDict, total=False):
    """Start (ISO 8601), duration, speed and DVC stage of a column, and how it was trained.

    ``started`` is that of its first run. ``seconds``, ``images_per_second`` and
    ``peak_memory_bytes`` are there only if one attempt trained all of the column: of several, or of
    runs that another column trained, what they took is not known. ``micro_batch`` is there only if
    batches were computed in parts of so many examples, ``ranks`` only if so many processes trained
    each run.
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
    micro_batch: int
    ranks: int
    device: str
    stage: str | None
    peak_memory_bytes: int


class Timing(_Record):
    """A whole `timing.json`: all that depends on the clock or the machine."""

    environment: Environment = {}
    column: ColumnClock = {}
    runs: dict[str, Clock] = {}
