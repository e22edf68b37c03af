"""Shows a column's progress: a live line on a terminal, otherwise a line now and then."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from smallbatch.errors import shown
from smallbatch.protocol.run import Run
from smallbatch.text import count

if TYPE_CHECKING:
    from datetime import datetime

    from rich.progress import Progress as RichProgress

QUIET_INTERVAL = 30.0  # seconds between lines if the output is not a terminal


class Progress:
    """Shows the epochs and runs of a column; see :class:`~execution.column.Observer`.

    Args:
        title: The name of the column, such as ``digits/resnet8-bn m=8``.
        runs: The number of runs of the column.
        epochs: The number of epochs per run.
        images: The number of training images per epoch.
        terminal: Whether to draw a live display; by default, if stderr is a terminal.
        trained: Of runs that others trained: by whom, where and in what time.
    """

    def __init__(
        self,
        title: str,
        runs: int,
        epochs: int,
        images: int,
        terminal: bool | None = None,
        trained: str = "",
    ) -> None:
        self.title, self.runs, self.epochs, self.images = title, runs, epochs, images
        self.trained = trained
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.done = self.diverged = 0
        self.loss = math.nan
        self._epochs_of: dict[str, int] = {}
        self._started = self._spoken = time.monotonic()
        self._trained = 0  # epochs trained now, without those of runs found finished or cut short
        self._rich: RichProgress | None = None

    def __enter__(self) -> Progress:
        if self.terminal:
            self._rich = display("runs", "loss")
            self._rich.start()
            self._rich.add_task(self.title, total=self.runs * self.epochs, runs="", loss="")
        else:
            epochs, images = count(self.epochs, "epoch"), count(self.images, "image")
            self._say(f"{count(self.runs, 'run')} × {epochs} × {images}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        if kind is None:
            here = f" in {clock(time.monotonic() - self._started)}"
            self._say(self._counts() + (f", {self.trained}" if self.trained else here))

    def run_begun(self, run: Run, started: datetime) -> None:
        """Do nothing: what is shown is epochs."""

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        """See :class:`~execution.column.Observer`."""
        self._epochs_of[run.hash] = row["epoch"]
        self._trained += 1
        self.loss = row["train_loss"]
        self._show()

    def run_done(self, run: Run, outcome: str) -> None:
        """See :class:`~execution.column.Observer`."""
        self._epochs_of[run.hash] = self.epochs
        self.done += 1
        self.diverged += outcome == "diverged"
        self._show()

    def _show(self) -> None:
        epochs = sum(self._epochs_of.values())
        loss = f"loss {self.loss:.3f}" if self._trained else ""  # else all of it was kept
        if self._rich is not None:
            runs = f"{self.done}/{count(self.runs, 'run')}"
            self._rich.update(self._rich.task_ids[0], completed=epochs, runs=runs, loss=loss)
        elif time.monotonic() - self._spoken >= QUIET_INTERVAL and self.done < self.runs:
            self._spoken = time.monotonic()
            left = self.runs * self.epochs - epochs
            speed = self._trained / (self._spoken - self._started)
            eta = f", about {clock(left / speed)} left" if speed > 0 else ""
            self._say(f"{self._counts()}, {loss}{eta}")

    def _counts(self) -> str:
        diverged = f" ({self.diverged} diverged)" if self.diverged else ""
        return f"{self.done}/{count(self.runs, 'run')}{diverged}"

    def _say(self, text: str) -> None:
        say(self.title, text)


def say(title: str, text: str) -> None:
    """Print a line on stderr about what trains."""
    print(shown(f"{title}: {text}"), file=sys.stderr, flush=True)


def display(*fields: str, bar: bool = True) -> RichProgress:
    """A live line on stderr: a task's description, a bar, fields of it, and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        *([BarColumn()] if bar else []),
        *(TextColumn(f"{{task.fields[{field}]}}") for field in fields),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def clock(seconds: float) -> str:
    """A duration in minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
