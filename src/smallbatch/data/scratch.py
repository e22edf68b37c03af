"""A temporary folder next to what will be put in place, gone again whatever happens."""

import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Generator[Path, None, None]:
    """Makes a hidden folder inside ``parent``, on the same file system, and removes it at the end.

    Folders up to ``parent`` are created, and removed again if nothing was put into them, so that
    a failure or an interrupt leaves no trace.

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
    try:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{prefix}-", dir=parent))
        yield scratch
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        _remove_empty(created)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, up to the first that is in use."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
