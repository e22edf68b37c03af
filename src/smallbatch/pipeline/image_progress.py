"""Shows how many images are prepared: a live line on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from smallbatch.pipeline.progress import QUIET_INTERVAL, clock, display, say
from smallbatch.text import count

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_REDRAW = 0.2  # seconds; a thousand images may be ready in a second


class ImageProgress:
    """Takes what `data.prepare.prepare` tells; silent for data sets of which it tells nothing.

    Args:
        title: The data set's name.
        terminal: Whether to draw a live display; by default, if stderr is a terminal.
    """

    def __init__(self, title: str, terminal: bool | None = None) -> None:
        self.title = title
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._found = 0  # images that were finished before
        self._started: float | None = None
        self._shown = 0.0
        self._rich: RichProgress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def told(self, done: int, total: int) -> None:
        """Show that so many images are ready, of so many."""
        now = time.monotonic()
        if self._started is None:
            self._started = self._shown = now
            self._found = done - 1
            self._begin(total)
        if done == total:
            seconds = now - self._started
            say(self.title, f"{count(total - self._found, 'image')} in {clock(seconds)}")
        elif self._rich is not None and now - self._shown >= _REDRAW:
            self._shown = now
            self._rich.update(self._rich.task_ids[0], completed=done, images=f"{done}/{total}")
        elif self._rich is None and now - self._shown >= QUIET_INTERVAL:
            self._shown = now
            rate = (done - self._found) / (now - self._started)
            left = clock((total - done) / rate)
            images = f"{done}/{count(total, 'image')}"
            say(self.title, f"{images}, {rate:.0f} a second, about {left} left")

    def _begin(self, total: int) -> None:
        found = f", {self._found} of them ready before" if self._found else ""
        say(self.title, f"{count(total, 'image')}, kept encoded{found}")
        if self.terminal:
            self._rich = display("images")
            self._rich.start()
            self._rich.add_task(self.title, total=total, completed=self._found, images="")
