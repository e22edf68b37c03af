"""Which mini-batch sizes train stably and which generalise, after Masters & Luschi 2018.

From Python: `train` makes a run, `load_runs`, `load_history` and `load_cells` read result files as
data frames, and `best`, `stable_range` and `claims` say what they speak for. See docs/python.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallbatch.api import (
        Best,
        Stopped,
        TrainedRun,
        UserError,
        best,
        claims,
        load_cells,
        load_history,
        load_runs,
        stable_range,
        train,
    )

    __version__: str

__all__ = [
    "Best",
    "Stopped",
    "TrainedRun",
    "UserError",
    "best",
    "claims",
    "load_cells",
    "load_history",
    "load_runs",
    "stable_range",
    "train",
]

DISTRIBUTION = "smallbatch-study"
"""What the package is installed as: `smallbatch` is another project on the public index."""


def __getattr__(name: str) -> object:
    """What is offered, imported when it is first used: pandas and more take their time."""
    if name == "__version__":
        from importlib.metadata import version

        return version(DISTRIBUTION)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from smallbatch.namesake import clash

    if (line := clash()) is not None:
        raise ImportError(line)
    return getattr(importlib.import_module("smallbatch.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
