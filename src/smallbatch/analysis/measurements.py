"""The tables that `smallbatch measure` writes: variances of updates, and their memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from smallbatch.errors import UserError
from smallbatch.records.reading import read_csv
from smallbatch.records.schema import MOST

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

MEMORY = "memory"
"""The folder of the tables of memory, below that of the variances."""

_ADVICE = "run smallbatch measure again"


def _variance(value: float) -> float:
    if value < 0 or math.isinf(value):
        raise ValueError("a variance is a number from 0 on")
    return value


class Variance(BaseModel):
    """A row of the table of variances; older ones lack what is None here."""

    dataset: str
    fingerprint: str | None = None
    study: str
    model: str | None = None
    norm: str | None = None
    seed: Annotated[int, Field(ge=0, le=MOST)]
    batch_size: Annotated[int, Field(ge=1, le=MOST)]
    base_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seen: Annotated[int, Field(ge=0, le=MOST)] | None = None
    variance: Annotated[
        float, BeforeValidator(lambda text: text or "nan"), AfterValidator(_variance)
    ]


class Memory(BaseModel):
    """A row of the table of memory: the bytes of one update, see `engines.update_memory`."""

    dataset: str
    fingerprint: str
    study: str
    model: str
    norm: str
    batch_size: Annotated[int, Field(ge=1, le=MOST)]
    engine: Literal["loop", "stacked"]
    device: Literal["cpu", "cuda"]
    bytes: Annotated[int, Field(ge=1, le=2**60)]


def read_variances(folder: Path) -> pd.DataFrame:
    """The variances that `smallbatch measure` wrote for all data sets; empty if there are none.

    Raises:
        UserError: A table is damaged, or two hold the same measurement.
    """
    return _read(folder, Variance)


def read_memory(folder: Path) -> pd.DataFrame:
    """The memory of updates that it wrote into the folder ``memory`` there, likewise.

    Raises:
        UserError: A table is damaged, or two hold the same measurement.
    """
    return _read(folder / MEMORY, Memory)


def _read(folder: Path, kind: type[Variance | Memory]) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    places: dict[tuple[object, ...], Path] = {}
    for path in sorted(folder.glob("*.csv")):
        for row in read_csv(kind, path, _ADVICE):
            key, named = _place(row)
            if key in places:
                where = "there twice; " if places[key] == path else (
                    f"in {places[key]} already; delete the older one, or "
                )  # fmt: skip
                raise UserError(
                    f"{path}: row of {row.dataset}/{row.study}, m={row.batch_size}, {named} is "
                    f"{where}{_ADVICE}"
                )
            places[key] = path
            rows.append(row.model_dump())
    return pd.DataFrame(rows)


def _place(row: Variance | Memory) -> tuple[tuple[object, ...], str]:
    """What is once in all tables, and the part of it that is of this kind of table, in words."""
    at = (row.dataset, row.study, row.batch_size)
    if isinstance(row, Memory):
        return (*at, row.engine, row.device), f"{row.engine} on {row.device}"
    return (*at, row.seed, row.seen or 0), f"seed {row.seed}"
