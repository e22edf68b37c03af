"""One writer a column, on one host or on several that share a file system."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from smallbatch import private
from smallbatch.errors import TakenOver, UserError, shown
from smallbatch.records.fence import OPEN, Fence, column_key, newest_attempt, raise_fence

BEAT_S = 10.0
"""Seconds between signs of life of whoever holds a lock."""
STALE_S = 120.0
"""Seconds of silence after which another host's lock is taken over."""
POLL_S = 0.5
SETTLE_S = 1.0  # between taking over a lock and making sure of it
_SIZE = 512  # bytes of a signature, padded with spaces
_MOST = 10**12  # attempts; a lock's file that says more is damaged


class Lock:
    """A column's lock, held. Its file says by whom, its modification time when they last lived.

    The kernel's lock ends with its process and those forked from it, however they end. Where
    it does not reach other hosts, as on some network file systems, the signs of life do.

    Attributes:
        fence: keeps this process from writing once another has taken over.
    """

    fence: Fence = OPEN

    def __init__(self, path: Path, directory: Path) -> None:
        self.path, self.directory = path, directory
        self.token = uuid.uuid4().hex
        self.by_kernel = True
        self._seen: tuple[float, float] | None = None
        self._beaten = -BEAT_S
        self._sure = time.monotonic()

    @property
    def attempt(self) -> int:
        """The number of this attempt at the column: one more than that of the last."""
        return self.fence.attempt

    def silence(self) -> float:
        """Seconds since the holder's last sign of life.

        By the clock of the file system, not of this host; or, as a clock may have been corrected,
        since this process first saw that sign.
        """
        moment, sign = time.monotonic(), self.path.stat().st_mtime
        if self._seen is None or self._seen[0] != sign:
            self._seen = sign, moment
        probe = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}")
        try:
            probe.touch()
            return max(probe.stat().st_mtime - sign, moment - self._seen[1])
        finally:
            probe.unlink(missing_ok=True)

    def beat(self, *, now: bool = False) -> None:
        """Give a sign of life, when it is time to, or ``now``: before something that is shared.

        Raises:
            TakenOver: another host has the lock, having heard nothing for STALE_S.
        """
        moment = time.monotonic()
        if not now and moment < self._beaten + BEAT_S:
            return
        self._beaten = moment
        try:
            holder = _read(self.path)
            if holder is None:  # somebody writes it just now?
                time.sleep(POLL_S)
                holder = _read(self.path)
        except OSError as error:  # a network file system that pauses
            if not now and moment < self._sure + STALE_S:
                return
            raise TakenOver(f"{self.path}: cannot be read ({error.strerror}); leaving") from error
        if holder is None:
            raise TakenOver(f"{self.directory}: the lock {self.path} is gone; leaving the column")
        if holder["token"] != self.token:
            raise TakenOver(f"{self.directory}: {_name(holder)} has taken over; leaving it to them")
        self._sure = moment
        with suppress(OSError):  # a full disk does not end a training
            os.utime(self.path)


@contextmanager
def one_writer(
    work: Path, directory: Path, check: Callable[[], None] = lambda: None
) -> Generator[Lock]:
    """Hold the right to write a column; whoever else wants it waits and says for whom.

    Args:
        work: the work folder.
        directory: of the column's result files.
        check: called while waiting; may raise.

    Raises:
        UserError: the lock cannot be written.
        OSError: it cannot be made, or what is there is a link, has another name or is no file.
    """
    private.refuse_links_of_others(work, directory)
    work.mkdir(parents=True, exist_ok=True)
    lock = Lock(work / f"{column_key(work, directory)}.lock", directory)
    file = private.open_lock(lock.path)
    try:
        told = False
        while holder := _holder(file, lock):
            if not told:
                line = f"{directory}: waiting for {_name(holder)}"
                print(shown(line), file=sys.stderr, flush=True)
            told = True
            check()
            time.sleep(POLL_S)
        attempt = _sign(file, lock, newest_attempt(work, directory))
        lock.beat()
        try:
            lock.fence = raise_fence(work, directory, attempt, lock.token[:8])
            yield lock
        finally:
            with suppress(OSError):
                if lock.fence.folder is not None:
                    lock.fence.folder.rmdir()  # if nothing is in it
            with suppress(OSError):
                if _content(lock.path).get("token") == lock.token:
                    _write(file, {"attempt": attempt})
    finally:
        os.close(file)


def _holder(file: int, lock: Lock) -> dict[str, Any] | None:
    """Who has the lock; None where this process has it now."""
    path = lock.path
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.by_kernel = True
    except BlockingIOError:
        return _read(path) or {"pid": "unknown", "host": platform.node()}
    except OSError:  # a file system without such locks
        lock.by_kernel = False
    found = _read(path)
    if found is None or (lock.by_kernel and found["boot"] == _boot()):
        return None  # nobody, or a process of this host that ended without a word
    silent = lock.silence()
    if silent < STALE_S:
        if lock.by_kernel:
            fcntl.flock(file, fcntl.LOCK_UN)
        return found
    line = f"{path}: taken over from {_name(found)}, silent for {silent:.0f} s"
    print(shown(line), file=sys.stderr, flush=True)
    return None


def _sign(file: int, lock: Lock, newest: int) -> int:
    """Sign the lock; returns the number of the attempt."""
    before = _content(lock.path)
    number = before.get("attempt")
    attempt = 1 + max(newest, number if isinstance(number, int) and number < _MOST else 0)
    holder = {
        "attempt": attempt,
        "token": lock.token,
        "pid": os.getpid(),
        "host": platform.node(),
        "boot": _boot(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        _write(file, holder)
    except OSError as error:
        raise UserError(f"{lock.path}: cannot be written: {error.strerror}") from error
    if not lock.by_kernel or before.get("boot", _boot()) != _boot():
        time.sleep(SETTLE_S)  # two may have found the lock free or stale: the last one has it
    return attempt


def _write(file: int, content: dict[str, Any]) -> None:
    # Over the old signature, never beside it or with none between: of two at once, one stays.
    os.pwrite(file, json.dumps(content).encode().ljust(_SIZE), 0)
    os.ftruncate(file, _SIZE)
    os.fsync(file)  # other hosts see it only now


def _content(path: Path) -> dict[str, Any]:
    """What a lock's file says: who holds it, and the number of the last attempt."""
    try:
        with os.fdopen(private.open_shared(path, os.O_RDONLY), "rb") as file:
            content = json.loads(file.read())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> dict[str, Any] | None:
    """Who holds a lock; None if nobody does."""
    holder = _content(path)
    return holder if {"token", "pid", "host", "boot"} <= holder.keys() else None


def _name(holder: dict[str, Any]) -> str:
    since = f" (since {holder['since']})" if "since" in holder else ""
    return f"process {holder['pid']} on {holder['host']}{since}"


def _boot() -> str:
    """What tells this running system from all others, and from itself before a restart."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()
