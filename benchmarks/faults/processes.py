"""Stages as forks of this process, which has imported what they need, and ways to end them."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

DEATH_S = 2.0
"""Seconds that the kernel may take to clear away a killed process on a busy machine."""
CRASHES = ("kill", "kill group", "kill worker", "terminate")


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


def crash(pid: int, how: str, delay: float, draw: random.Random) -> tuple[int, float, int]:
    """End a child in a bad way after a delay, unless it ends by itself before.

    Returns:
        Its exit code, the seconds it took to end, and how many of its children outlived it.
    """
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), 0.0, 0
        time.sleep(0.002)
    workers = trainers(pid)
    asked = time.monotonic()
    if how == "kill worker" and workers:
        os.kill(draw.choice(workers), signal.SIGKILL)
    elif how == "terminate":
        os.killpg(pid, signal.SIGTERM)
    elif how == "kill group":
        os.killpg(pid, signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    code = end(pid)
    took = time.monotonic() - asked
    deadline = time.monotonic() + DEATH_S
    while any(map(_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return code, took, sum(map(_alive, workers))


def trainers(pid: int) -> list[int]:
    """Workers of a training: its children that are forks of it."""
    try:
        own = Path(f"/proc/{pid}/cmdline").read_bytes()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(it) for it in children if Path(f"/proc/{it}/cmdline").read_bytes() == own]
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
