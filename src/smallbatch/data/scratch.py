"""A temporary folder next to what will be put in place, gone again whatever happens."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_RANDOM_CHARACTERS = 8  # of mkdtemp


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Generator[Path, None, None]:
    """Makes a hidden folder inside ``parent``, on the same file system, and removes it at the end.

    Those that killed processes left go first: nobody holds their locks. Folders up to ``parent``
    are created, and removed again if nothing was put into them, so that a failure or an interrupt
    leaves no trace.

    Args:
        parent: Where the result will be, given a rename.
        prefix: How the name of the temporary folder begins, after a dot.

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
            with _locked(parent):  # or another process might take a new folder for a left one
                for left in parent.glob(f".{prefix}-{'?' * _RANDOM_CHARACTERS}"):
                    with suppress(OSError), _locked(left, fcntl.LOCK_NB):
                        shutil.rmtree(left)
                scratch = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=parent))
                held.enter_context(_locked(scratch))
            yield scratch
        finally:
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            _remove_empty(created)


@contextmanager
def _locked(folder: Path, how: int = 0) -> Generator[None, None, None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        except OSError:  # held, or a file system without locks, where nobody knows what is left
            if how:
                raise
        yield
    finally:
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, up to the first that is in use."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
