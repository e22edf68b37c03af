"""Types and limits of single values of params.yaml."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from smallbatch.config.base_lr import parse_base_lr

MOST = 2**31 - 1  # of any count: more than can be trained, and safe in arithmetic
MOST_GIB = 2**20  # of memory
MOST_ITEMS = 10_000  # of a list of the grid

# Names become names of folders and MLflow experiments, and must not lead out of their folder.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

# \Z, as $ also matches before a newline at the end; and \d would match digits of any script.
BEST_OF = re.compile(r"^best of ([a-z0-9][a-z0-9_-]{0,63})\Z")
UP_TO = re.compile(r"^up to ([1-9][0-9]{0,8})\Z")
UPDATES_OF = re.compile(r"^updates of ([1-9][0-9]{0,8})\Z")


def _best_of(value: object) -> object:
    if isinstance(value, str) and BEST_OF.match(value):
        return value
    raise ValueError("`best of` and the name of a study that runs before, or base_lrs with a list")


class UpTo(int):
    """The largest sub-batch of batch norm: a batch that is no larger is normalised as one."""


def _bn_batch_size(value: object, check: ValidatorFunctionWrapHandler) -> int:
    if isinstance(value, UpTo):
        return value
    if not isinstance(value, str):
        return check(value)
    if match := UP_TO.match(value):
        return UpTo(check(int(match.group(1))))
    raise ValueError("a whole number, or `up to` and one, such as: up to 128")


def _written(value: int) -> int | str:
    return f"up to {value:d}" if isinstance(value, UpTo) else value


def _budget(value: object) -> object:
    if value == "epochs" or (isinstance(value, str) and UPDATES_OF.match(value)):
        return value
    raise ValueError("epochs, or `updates of` and a batch size, such as: updates of 64")


def _count(least: int, most: int) -> BeforeValidator:
    """A whole number within limits, or ``auto``."""

    def check(value: object) -> object:
        if value == "auto" or (type(value) is int and least <= value <= most):
            return value
        raise ValueError(f"a whole number from {least} to {most}, or auto")

    return BeforeValidator(check)


def _gibibytes(value: object) -> object:
    if value == "auto" or (type(value) in (int, float) and 0 < float(str(value)) <= MOST_GIB):
        return value if value == "auto" else float(str(value))
    raise ValueError(f"a number of GiB above 0 and up to {MOST_GIB}, or auto")


def as_name(text: str, default: str) -> str:
    """A text as a `Name`; the default where nothing is left of it."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-_")[:64] or default


def refuse_repeats(key: str, values: tuple[object, ...]) -> None:
    """Check that no value is there twice.

    Raises:
        ValueError: One is; the message names it.
    """
    twice = sorted(str(value) for value, times in Counter(values).items() if times > 1)
    if twice:
        raise ValueError(f"{key} lists {', '.join(twice)} more than once")


BaseLr = Annotated[float, BeforeValidator(parse_base_lr)]
# A YAML list reads as a Python list; the items stay strict.
BatchSizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MOST)], ...],
    Field(strict=False, min_length=1, max_length=MOST_ITEMS),
]
BnBatchSize = Annotated[
    int, Field(ge=2, le=MOST), WrapValidator(_bn_batch_size), PlainSerializer(_written)
]
BnBatchSizes = Annotated[
    tuple[Annotated[int, Field(ge=2, le=MOST)], ...],
    Field(strict=False, min_length=1, max_length=100),
]
BaseLrs = Annotated[tuple[BaseLr, ...], Field(strict=False, min_length=1, max_length=MOST_ITEMS)]
SeedCount = Annotated[int, Field(ge=1, le=MOST_ITEMS)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
BestOf = Annotated[str, BeforeValidator(_best_of)]
Budget = Annotated[str, BeforeValidator(_budget)]
WorkerCount = Annotated[int | Literal["auto"], _count(1, 1024)]
HelperCount = Annotated[int | Literal["auto"], _count(0, 1024)]
GpuCount = Annotated[int | Literal["auto"], _count(0, 1)]
MicroBatch = Annotated[int | Literal["auto"], _count(1, MOST)]
Gibibytes = Annotated[float | Literal["auto"], BeforeValidator(_gibibytes)]
