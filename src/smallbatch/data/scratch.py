"""A temporary folder beside the place of a result, which is always removed in the end."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_RANDOM_CHARACTERS = 8  # in names made by mkdtemp


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Generator[Path, None, None]:
    """Makes a hidden folder inside ``parent``, on the same file system, and removes it at the end.

    First it removes the folders of killed processes, which are those that no process has locked.
    Missing folders up to ``parent`` are created, and removed again if they stay empty, so that a
    failure or an interrupt leaves no trace.

    Args:
        parent: The folder of the result, which a rename can move there.
        prefix: The beginning of the temporary folder's name, after a dot.

    Yields:
        The temporary folder, empty.

    Raises:
        OSError: It can't be created.
    """
    created = [path for path in (parent, *parent.parents) if not path.exists()]
    scratch: Path | None = None
    with ExitStack() as held:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent):  # so that no other process removes the folder before its lock
                for left in parent.glob(f".{prefix}-{'?' * _RANDOM_CHARACTERS}"):
                    with suppress(OSError), locked(left, fcntl.LOCK_NB):
                        shutil.rmtree(left)
                scratch = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=parent))
                held.enter_context(locked(scratch))
            yield scratch
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            _remove_empty(created)


@contextmanager
def locked(folder: Path, how: int = 0) -> Generator[None, None, None]:
    """Holds a folder's lock, where the file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        except OSError:  # locked, or the file system has no locks, and then nothing is removed
            if how:
                raise
        yield
    finally:
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, up to the first that is not empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
