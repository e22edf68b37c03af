"""What a column's training took of the machine: `system.json`, beside `timing.json`.

Like that file it depends on the clock and the machine, and nothing else depends on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from smallbatch.records.reading import read_json

NAME = "system.json"
MOST = 180
"""Samples in a file, however long a training: where there would be more, neighbours are joined."""

_STRICT = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Sample(BaseModel):
    """One look: when, in milliseconds since 1970, and values by MLflow's names without `system/`.

    Such as `cpu_utilization_percentage` and `system_memory_usage_megabytes`.
    """

    model_config = _STRICT

    time: Annotated[int, Field(gt=0)]
    values: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,60}$")], float]


class SystemUse(BaseModel):
    """A whole `system.json`: seconds between samples, and these in order."""

    model_config = _STRICT

    interval: Annotated[float, Field(gt=0)]
    samples: Annotated[tuple[Sample, ...], Field(max_length=MOST)]

    def joined(self) -> SystemUse:
        """Half as many samples, each the mean of two neighbours, twice as far apart."""
        pairs = [self.samples[i : i + 2] for i in range(0, len(self.samples), 2)]
        return SystemUse(interval=2 * self.interval, samples=tuple(map(_mean, pairs)))


def read_system(directory: Path) -> SystemUse | None:
    """Read a column's `system.json`; None where there is none, as in older results.

    Raises:
        UserError: It is damaged.
    """
    path = directory / NAME
    return read_json(SystemUse, path, "delete this file") if path.exists() else None


def _mean(samples: tuple[Sample, ...]) -> Sample:
    names = dict.fromkeys(name for it in samples for name in it.values)
    values: dict[str, float] = {}
    for name in names:
        found = [it.values[name] for it in samples if name in it.values]
        values[name] = sum(found) / len(found)
    return Sample(time=samples[-1].time, values=values)
