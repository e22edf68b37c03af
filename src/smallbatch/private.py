"""Files of our own, trusted only where no other user can have written them.

A cache, a lock or a compiled library that another user planted could run their code as ours, or
have us overwrite our own files through a link. So what is kept outside a project lies in a private
folder, and each file in it is looked at before it is used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a FIFO is not waited for
_POLL_S = 0.05


class Untrusted(OSError):  # noqa: N818 - the state of a file
    """A file or folder that another user may have written, or that is none of its kind."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EPERM, why, str(path))


def make_folder(path: Path) -> Path:
    """Make a folder for this user alone, or make sure that it is one; returns its real path.

    A folder of this user that others may write loses their permission: files in it are looked at
    one by one all the same.

    Raises:
        Untrusted: It or a folder above it can be replaced or written by another user.
        OSError: It cannot be made.
    """
    for folder in reversed((path, *path.parents)):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    real = path.resolve(strict=True)
    for folder in real.parents:
        _check_parent(folder)
    descriptor = os.open(real, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise Untrusted(real, "the folder belongs to another user")
        if found.st_mode & _OTHERS_WRITE:
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
    finally:
        os.close(descriptor)
    return real


def read(path: Path) -> bytes:
    """The content of a file that this user alone can have written.

    Raises:
        FileNotFoundError: There is none.
        Untrusted: Another user may have written it, or it is a link or no regular file.
    """
    with os.fdopen(_open(path, os.O_RDONLY), "rb") as file:
        return file.read()


def scratch_folder() -> Path:
    """A new private folder that goes with this process, for what cannot be kept elsewhere."""
    return Path(_scratch().name)


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="smallbatch-", ignore_cleanup_errors=True)


@contextmanager
def locked(path: Path, *, wait: float, check: Callable[[], None] = lambda: None) -> Generator[None]:
    """Keep other processes of this machine out, by a lock file in a private folder.

    Args:
        path: The lock file, which is made, and never removed.
        wait: Seconds to wait for another process, at most.
        check: Called while waiting; may raise.

    Raises:
        TimeoutError: Another process has it for that long.
        Untrusted: Another user may hold the file, or it is a link.
        OSError: It cannot be made.
    """
    until = time.monotonic() + wait
    descriptor = _open(path, os.O_RDWR | os.O_CREAT)
    try:
        while not _lock(descriptor):
            check()
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, f"locked for over {wait:g} s", str(path))
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)  # with the lock


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, flags | _SAFE, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link; a socket
            raise Untrusted(path, "a link or no regular file") from error
        raise
    found = os.fstat(descriptor)
    why = None
    if not stat.S_ISREG(found.st_mode):
        why = "no regular file"
    elif found.st_uid != os.geteuid():
        why = "the file belongs to another user"
    elif found.st_mode & _OTHERS_WRITE:
        why = "other users may write the file"
    elif found.st_nlink > 1:
        why = "the file has another name elsewhere"
    if why is not None:
        os.close(descriptor)
        raise Untrusted(path, why)
    return descriptor


def _check_parent(folder: Path) -> None:
    """Whoever may write a folder may replace what is in it, unless it is sticky as /tmp is."""
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise Untrusted(folder, "the folder belongs to another user")
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise Untrusted(folder, "other users may write the folder")
