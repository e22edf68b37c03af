"""What a column costs, and its files: packed for the way back, and in one line."""

from __future__ import annotations

import json
import tarfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from smallbatch.config.base_lr import format_base_lr
from smallbatch.protocol.column import Column
from smallbatch.protocol.run import Run

FILES = ("history.parquet", "runs.json", "timing.json")
TOLD = 20  # epochs from one line about a run to the next
START = 10.0  # seconds of a column that no image explains: compilers, captures, files
STABLE = 0.25  # the largest learning rate η̃·m of which a run is expected to finish


def estimate(column: Column, work: Path, rate: float) -> float:
    """Seconds that the missing runs of a column take at ``rate`` trained images per second.

    An image costs a third as much in an evaluation. Runs above `STABLE` are expected to diverge
    early, but for one.
    """
    missing = [run for run in column.runs if not (work / "runs" / run.hash).exists()]
    if not missing:
        return 1.0
    counts = column.dataset.meta.counts
    images = counts["train"] + (counts["validation"] + counts["test"]) / 3
    lanes = max(1, sum(run.lr <= STABLE for run in missing))
    return START + lanes * images * missing[0].settings.epochs / rate


def pack(folder: Path, root: Path, target: Path, commit: str | None) -> None:
    """Put a column's files, but for its weights, into one, under their names from ``root`` on."""
    timing = json.loads((folder / "timing.json").read_text())
    if commit:
        timing["environment"] |= {"git_commit": commit, "git_dirty": False}
        text = json.dumps(timing, indent=1, sort_keys=True) + "\n"
        (folder / "timing.json").write_text(text)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with tarfile.open(part, "w") as archive:
        for name in FILES:
            archive.add(folder / name, (folder / name).relative_to(root))
    part.replace(target)


def summary(folder: Path) -> str:
    """One line about a finished column."""
    column = json.loads((folder / "timing.json").read_text())["column"]
    runs = json.loads((folder / "runs.json").read_text())["runs"]
    ends = [f"{format_base_lr(run['base_lr'])} {_end(run)}" for run in runs]
    speed = "trained in several attempts"
    if "seconds" in column:
        speed = f"{column['images_per_second']:,.0f} images/s, {column['seconds']:.1f} s"
    return f"{speed}; test accuracy, or x and the update of the divergence: {', '.join(ends)}"


def _end(run: dict[str, Any]) -> str:
    at, accuracy = run["diverged_at"], run["final"]["test_accuracy"]
    return f"x{at}" if at else f"{accuracy:.4f}"


class Teller:
    """Prints a line about each run now and then."""

    def __init__(self, clock: float) -> None:
        self.clock = clock

    def run_begun(self, run: Run, started: datetime) -> None:
        """Do nothing: what is told is epochs."""

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        """See :class:`~execution.column.Observer`."""
        if row["epoch"] % TOLD == 0:
            accuracy = f"test accuracy {row['test_accuracy']:.4f}"
            self._say(run, f"epoch {row['epoch']}, {accuracy}")

    def run_done(self, run: Run, outcome: str) -> None:
        """See :class:`~execution.column.Observer`."""
        self._say(run, outcome)

    def _say(self, run: Run, what: str) -> None:
        lr = format_base_lr(run.base_lr)
        passed = time.monotonic() - self.clock
        print(f"[{passed:6.1f} s] m={run.batch_size} {lr} seed {run.seed}: {what}", flush=True)
