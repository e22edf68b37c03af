"""Stages as forks of this process, which has imported what they need, and ways to end them."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

DEATH_S = 2.0
"""Seconds that the kernel may take to clear away a killed process on a busy machine."""
CRASHES = ("kill", "kill group", "kill worker", "terminate")
WEIGHTS = (6, 2, 1, 2)


def start(folder: Path, action: Callable[[], None]) -> int:
    """Run ``action`` in a child of its own session, in ``folder``; its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        action()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - the parent sees the exit code and the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(pid: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass(frozen=True)
class Crash:
    """How a child was ended.

    Attributes:
        how: one of :data:`CRASHES`, or "ended": by itself, before its time.
        after: seconds.
        code: its exit code; 0 where it had ended by itself, well, before.
        took: seconds that it took to end.
        left: how many of its workers outlived it.
        unsaved: seconds of work that its workers had to lose; None where nobody worked.
    """

    how: str
    after: float
    code: int
    took: float = 0.0
    left: int = 0
    unsaved: float | None = None


def crash(
    pid: int,
    delay: float,
    draw: random.Random,
    unsaved: Callable[[Sequence[int]], float | None],
) -> Crash:
    """End a child in a bad way after a delay, unless it ends by itself before."""
    how = draw.choices(CRASHES, weights=WEIGHTS)[0]
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return Crash("ended", delay, os.waitstatus_to_exitcode(status))
        time.sleep(0.002)
    workers = trainers(pid)
    lost = unsaved(workers)
    asked = time.monotonic()
    if how == "kill worker" and workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    elif how == "terminate":
        os.killpg(pid, signal.SIGTERM)
    elif how == "kill group":
        os.killpg(pid, signal.SIGKILL)
    else:
        how = "kill"
        os.kill(pid, signal.SIGKILL)
    code = end(pid)
    took = time.monotonic() - asked
    wait_for_end(workers)
    return Crash(how, delay, code, took, sum(map(_alive, workers)), lost)


def wait_for_end(pids: Sequence[int], seconds: float = DEATH_S) -> None:
    """Wait, so long at most, until none of these processes is left."""
    deadline = time.monotonic() + seconds
    while any(map(_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)


def members(session: int) -> list[int]:
    """All processes of a session."""
    found: list[int] = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def trainers(pid: int) -> list[int]:
    """Workers of a training: its children that are forks of it."""
    try:
        process = psutil.Process(pid)
        own, children = process.cmdline(), process.children()
        return [it.pid for it in children if it.as_dict(["cmdline"])["cmdline"] == own]
    except psutil.Error:
        return []


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
