"""Keeps the traceback of a fault of this program in a private file."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from smallbatch import DISTRIBUTION, private
from smallbatch.errors import first_line
from smallbatch.redact import redact

WORK = Path(".smallbatch")


def keep(error: BaseException) -> str:
    """Write the traceback of a fault, without secrets, for its owner alone; what to say of it."""
    kind, said = type(error).__name__, str(error).strip().splitlines()
    # Of a traceback from another process its title, and what was raised.
    what = ": ".join(["internal error", kind, *said[:1], *said[1:][-1:]])
    path = _write(_report(error))
    where = f"details in {path}" if path else "its details cannot be written"
    return f"{redact(what)[:500]}; {where}, please report"


def _report(error: BaseException) -> str:
    with suppress(Exception):  # odd attributes must not hide the error itself
        version = metadata.version(DISTRIBUTION)
        head = f"smallbatch {version}, Python {platform.python_version()}, {platform.platform()}\n"
        words = " ".join(sys.argv)
        return redact(f"{head}{words}\n\n{''.join(traceback.format_exception(error))}")
    return redact(first_line(error))


def _write(text: str) -> Path | None:
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{time.monotonic_ns() % 10**6:06}.txt"
    for folder in _folders():
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            descriptor = os.open(folder / name, flags, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return folder / name
    return None


def _folders() -> Iterator[Path]:
    """Folders that only this user can change: the project's, the cache's, a new one."""
    from smallbatch.machine import cache_folder

    own = WORK / "errors"
    with suppress(OSError):
        if WORK.is_dir() and not own.is_symlink():
            private.make_folder(own)
            yield own
    with suppress(OSError, RuntimeError):  # no home
        yield private.make_folder(cache_folder() / "errors")
    with suppress(OSError):
        yield Path(tempfile.mkdtemp(prefix="smallbatch-errors-"))
