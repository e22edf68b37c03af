"""A temporary folder beside the place of a result, which is always removed in the end."""

import errno
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from smallbatch import private

WAIT_S = 600.0
"""Most seconds to wait for another process, which may remove what many killed ones left."""
_POLL_S = 0.05
_QUIET_S = 2.0
_RANDOM_CHARACTERS = 8  # in names made by mkdtemp


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Generator[Path, None, None]:
    """Makes a hidden folder inside ``parent``, on the same file system, and removes it at the end.

    First it removes the folders of killed processes, which are those that no process has locked,
    and those of unfinished work under this name. Missing folders up to ``parent`` are created, and
    removed again if they stay empty, so that a failure or an interrupt leaves no trace.

    Args:
        parent: The folder of the result, which a rename can move there.
        prefix: The beginning of the temporary folder's name, after a dot.

    Yields:
        The temporary folder, empty.

    Raises:
        OSError: It can't be created, or another process holds the lock of ``parent``.
    """
    private.refuse_links_of_others(parent)
    created = [path for path in (parent, *parent.parents) if not path.exists()]
    scratch: Path | None = None
    with ExitStack() as held:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent):  # so that no other process removes the folder before its lock
                _clear(parent, f".{prefix}-{'?' * _RANDOM_CHARACTERS}", f".{prefix}.*.unfinished")
                scratch = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=parent))
                with suppress(OSError):  # without locks, which means that nothing is removed
                    held.enter_context(_unused(scratch))
            yield scratch
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            _remove_empty(created)


@contextmanager
def unfinished_folder(parent: Path, name: str, key: str) -> Generator[Path, None, None]:
    """A hidden folder inside ``parent`` for work that goes on where it was when it ended early.

    It is removed when the work is done, or when another begins under the same name.

    Args:
        parent: The folder of the result.
        name: The result's name.
        key: What the work is made from: under the same key it goes on.

    Yields:
        The folder, empty or as it was left.

    Raises:
        OSError: It can't be created, or another process works in it.
    """
    folder = parent / f".{name}.{key}.unfinished"
    private.refuse_links_of_others(parent, folder)
    created = [path for path in (parent, *parent.parents) if not path.exists()]
    with ExitStack() as held:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent):
                _clear(parent, f".{name}.*.unfinished", keep=folder)
                folder.mkdir(exist_ok=True)
                try:
                    held.enter_context(_unused(folder))
                except BlockingIOError as error:
                    why = "another process is at this"
                    raise BlockingIOError(errno.EWOULDBLOCK, why, str(folder)) from error
                except OSError:  # the file system has no locks
                    pass
            yield folder
            shutil.rmtree(folder)
        finally:
            with suppress(OSError):
                folder.rmdir()  # if nothing is in it
            _remove_empty(created)


def remove_unfinished(parent: Path, name: str) -> None:
    """Removes what killed processes have left of work under a name, where that is possible."""
    pattern = f".{name}.*.unfinished"
    with suppress(OSError):
        if any(parent.glob(pattern)):
            with locked(parent):
                _clear(parent, pattern)


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Holds a folder's lock, where the file system has locks.

    The lock is on a file, which goes with it, as whoever may read a folder may lock the folder.

    Raises:
        OSError: The file can't be made, or another process has the lock for ``WAIT_S``.
    """
    path = folder / ".lock"
    descriptor = _take(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _take(path: Path) -> int:
    began, told = time.monotonic(), False
    while True:
        descriptor = private.open_lock(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        except OSError:  # the file system has no locks
            return descriptor
        else:
            if os.fstat(descriptor).st_nlink:
                return descriptor
            os.close(descriptor)  # it went with the lock of another process
            continue
        waited = time.monotonic() - began
        if waited > WAIT_S:
            raise TimeoutError(errno.ETIMEDOUT, f"locked for over {WAIT_S:g} s", str(path))
        if waited > _QUIET_S and not told:
            print(f"{path}: waiting for another process", file=sys.stderr, flush=True)
            told = True
        time.sleep(_POLL_S)


@contextmanager
def _unused(folder: Path) -> Generator[None, None, None]:
    """Holds a scratch folder that no other process has."""
    how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(folder, how)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _clear(parent: Path, *patterns: str, keep: Path | None = None) -> None:
    """Removes folders that no process holds; ``parent`` is locked, so that none takes one now."""
    for pattern in patterns:
        for left in set(parent.glob(pattern)) - {keep}:
            with suppress(OSError), _unused(left):
                shutil.rmtree(left)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, up to the first that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
