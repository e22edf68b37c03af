"""What trained the runs of a column, in words, from its timing file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smallbatch.records.schema import Timing

DIFFERS = "numbers round differently from one to another, and times cannot be compared"
"""What follows from several kinds of hardware, or engines, as the end of a sentence."""


def trained_by(timing: Timing) -> dict[str, int]:
    """How many runs of a column each kind of hardware trained, by its name; most first.

    Where engines or kernels are not the same for all runs, they are part of the name. Runs of which
    older files do not name the hardware are not counted.
    """
    of_column = {**timing.environment, **timing.column}
    runs = [{**of_column, **clock.environment} for clock in timing.runs.values()]
    kinds = {(_name(run), run.get("hardware")) for run in runs}
    names = Counter(name for name, _ in kinds)
    ways = {(run.get("engine"), run.get("kernels")) for run in runs}
    found: Counter[str] = Counter()
    for run in runs:
        if name := _name(run):
            exact = f" ({run['hardware']})" if names[name] > 1 else ""
            found[name + exact + (_way(run) if len(ways) > 1 else "")] += 1
    return dict(found.most_common())


def sentence(runs: Mapping[str, int]) -> str:
    """How a column's runs are split between what trained them, such as ``2 runs on X``."""
    return ", ".join(f"{count(number, 'run')} on {name}" for name, number in runs.items())


def _name(run: Mapping[str, object]) -> str:
    """The GPU's name, or the processor's; empty if it is not known."""
    on_gpu = run.get("device") == "cuda" and run.get("gpu")
    return str((run["gpu"] if on_gpu else run.get("cpu")) or "")


def _way(run: Mapping[str, object]) -> str:
    kernels = f", kernels {run['kernels']}" if run.get("kernels") else ""
    return f" by engine {run.get('engine')}{kernels}"
