"""What trained the runs of a column, in words, from its timing file."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from smallbatch.records.schema import Timing

DIFFERS = "between these, numbers round differently, and times cannot be compared"
"""What follows from several kinds of hardware, or several engines."""


class Trained(NamedTuple):
    """The name of some hardware, the engine if that differs too, and how many runs it trained."""

    hardware: str
    by: str
    runs: int


def trained_by(timing: Timing) -> list[Trained]:
    """What trained the runs of a column; what trained most of them comes first.

    Runs of which older files do not name the hardware are not counted.
    """
    of_column = {**timing.environment, **timing.column}
    runs = [{**of_column, **clock.environment} for clock in timing.runs.values()]
    names = Counter(name for name, _ in {(_name(run), run.get("hardware")) for run in runs})
    several = len({(run.get("engine"), run.get("kernels")) for run in runs}) > 1
    found: Counter[tuple[str, str]] = Counter()
    for run in runs:
        if name := _name(run):
            # As two virtual machines may have, whose processors leave different instructions out.
            exact = f" ({run.get('hardware')})" if names[name] > 1 else ""
            found[name + exact, _by(run) if several else ""] += 1
    return [Trained(*kind, number) for kind, number in found.most_common()]


def sentence(trained: Iterable[Trained]) -> str:
    """How the runs of a column are split, such as ``2 runs on X, 1 run on Y``."""
    return ", ".join(f"{count(it.runs, 'run')} on {it.hardware}{it.by}" for it in trained)


def _name(run: Mapping[str, object]) -> str:
    """The GPU's name, or the processor's; empty if it is not known."""
    on_gpu = run.get("device") == "cuda" and run.get("gpu")
    return str((run["gpu"] if on_gpu else run.get("cpu")) or "")


def _by(run: Mapping[str, object]) -> str:
    kernels = f" with {run['kernels']} kernels" if run.get("kernels") else ""
    return f" by engine {run.get('engine')}{kernels}"
