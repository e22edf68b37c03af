"""Reasons to end a training early: a signal, a time limit, or the end of `dvc`."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

from smallbatch.errors import INTERRUPTED, OUT_OF_TIME, Stopped

GRACE_S = 4.0
"""Seconds from the request to the end of the process, with or without a last checkpoint."""

HINT = "finished runs and checkpoints are kept; the same command goes on from there"

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DVC_IS_GONE = "stopped, because dvc is gone"
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
_LOOK_S = 0.5  # seconds between looks for dvc


class Watch:
    """Looks out for reasons to end a command; as a context it catches SIGINT and SIGTERM.

    If the process has not ended within GRACE_S of the first reason, it is ended by force.

    Args:
        time_limit: Seconds that the command may take; if `dvc` started it, that `dvc` may take.
        under_dvc: Whether to end with the `dvc` that started it; by default, if one did.
    """

    def __init__(self, time_limit: float | None = None, under_dvc: bool | None = None) -> None:
        self._why: Stopped | None = None
        self._timers: list[threading.Timer] = []
        self._handlers: dict[int, Any] = {}
        self._under_dvc = "DVC_STAGE" in os.environ if under_dvc is None else under_dvc
        self._dvc = dvc_above() if self._under_dvc else None
        self._looked = time.monotonic()
        self._deadline = math.inf
        self._limit = time_limit
        if time_limit is not None:
            passed = max(0.0, time.time() - self._dvc.create_time()) if self._dvc else 0.0
            spare = min(GRACE_S + 1, time_limit / 2)
            self._deadline = time.monotonic() - passed + time_limit - spare

    def __enter__(self) -> Watch:
        for number in _SIGNALS:
            self._handlers[number] = signal.signal(number, self._on_signal)
        if self._limit is not None:  # a timer, as `stopping` may not be called at that moment
            reason = f"stopped before the time limit of {self._limit:g} s"
            self._later(self.left, self._stop, reason, OUT_OF_TIME)
        if self._under_dvc and self._dvc is None and os.getppid() == 1:
            self._stop(_DVC_IS_GONE, INTERRUPTED)  # dvc ended before its process was looked up
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        for timer in self._timers:
            timer.cancel()

    @property
    def left(self) -> float:
        """Seconds until the command has to end because of its time limit."""
        return max(0.0, self._deadline - time.monotonic())

    def stopping(self) -> bool:
        """Whether the command has to end."""
        now = time.monotonic()
        if self._why is None and self._dvc and now >= self._looked + _LOOK_S:
            self._looked = now
            if not _lives(self._dvc):
                self._stop(_DVC_IS_GONE, INTERRUPTED)
        return self._why is not None

    def check(self) -> None:
        """Raise if the command has to end.

        Raises:
            Stopped: The command has to end.
        """
        if self.stopping() and self._why is not None:
            raise self._why

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._stop(f"interrupted by {signal.Signals(number).name}", INTERRUPTED)

    def _stop(self, reason: str, exit_code: int) -> None:
        if self._why is not None:
            return
        self._why = Stopped(f"{reason}: {HINT}", exit_code)
        self._later(GRACE_S, _leave, self._why)

    def _later(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        timer = threading.Timer(seconds, action, arguments)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


def _leave(why: Stopped) -> None:
    # The progress display hid the terminal's cursor and cannot show it again.
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}{why}\n".encode())
    os._exit(why.exit_code)


def dvc_above() -> psutil.Process | None:
    """The nearest living `dvc` among this process's ancestors."""
    try:
        for process in psutil.Process().parents():
            if "dvc" in [Path(word).name for word in process.cmdline()[:3]]:
                return process if _lives(process) else None
    except (psutil.Error, OSError):
        pass
    return None


def _lives(process: psutil.Process) -> bool:
    """Whether it has not ended; a later process of the same number is another."""
    try:
        return process.is_running() and process.status() not in _ENDED
    except (psutil.Error, OSError):
        return False
