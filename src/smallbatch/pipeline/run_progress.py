"""Shows a single run's progress, epoch by epoch: in place on a terminal, otherwise as lines."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from smallbatch.pipeline.progress import clock, display, say
from smallbatch.text import count

if TYPE_CHECKING:
    from datetime import datetime

    from rich.progress import Progress as RichProgress

    from smallbatch.protocol.run import Run

FEW = 10  # epochs, each of which gets a line of its own
INTERVAL = 5.0  # seconds between the lines of more epochs


class RunProgress:
    """Shows the epochs of one run; see :class:`~execution.column.Observer`.

    Args:
        title: What trains, such as ``digits/resnet8-bn m=8``.
        epochs: The number of epochs.
        images: The number of training images per epoch.
        terminal: Whether to show it in place; by default, if stderr is a terminal.
        trained: Of a run that others trained: by whom, where and in what time.
    """

    def __init__(
        self,
        title: str,
        epochs: int,
        images: int,
        terminal: bool | None = None,
        trained: str = "",
    ) -> None:
        self.title, self.epochs, self.images, self.trained = title, epochs, images, trained
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._epoch = 0  # the last one that was trained now
        self._kept = True  # until it trains
        self._started = time.monotonic()
        self._spoken = -INTERVAL
        self._rich: RichProgress | None = None

    def __enter__(self) -> RunProgress:
        if self.terminal:
            self._rich = display(bar=False)  # it has no room, nor has the title
            self._rich.start()
            self._rich.add_task(f"epoch 1/{self.epochs}", total=self.epochs)
        else:
            say(self.title, f"{count(self.epochs, 'epoch')} × {count(self.images, 'image')}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()
        if kind is not None:
            return
        if self._kept:
            kept = "found the kept result of this run; nothing was trained"
            say(self.title, self.trained or kept)
        else:
            took = clock(time.monotonic() - self._started)
            say(self.title, f"{self._epoch} of {count(self.epochs, 'epoch')} in {took}")

    def run_begun(self, run: Run, started: datetime) -> None:
        """Do nothing: what is shown is epochs."""

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:  # noqa: ARG002
        """See :class:`~execution.column.Observer`."""
        self._kept, self._epoch = False, row["epoch"]
        now = f"epoch {self._epoch}/{self.epochs}, training loss {row['train_loss']:.3f}"
        if math.isfinite(row["test_accuracy"]):  # else it diverged in this epoch
            now += f", test accuracy {100 * row['test_accuracy']:.1f} %"
        if self._rich is not None:
            self._rich.update(self._rich.task_ids[0], completed=self._epoch, description=now)
        elif self._is_time():
            self._spoken = time.monotonic()
            say(self.title, now)

    def run_done(self, run: Run, outcome: str) -> None:
        """Do nothing: how it ended is told with the results."""

    def _is_time(self) -> bool:
        waited = time.monotonic() - self._spoken >= INTERVAL
        return waited or self.epochs <= FEW or self._epoch == self.epochs
