"""Which folder a column's results are in, told from all others, also from those of other machines.

Names do not tell it: containers have the same path and machine name, and a folder keeps neither
when it moves. So every project has a random number of its own, in a file that also holds its own
inode number: in a copy of the file that number is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from smallbatch import durable

FOLDER, FILE = ".smallbatch", "place"
_CONTENT = re.compile(rb"([0-9a-f]{32}) (\d+)\n")


def place_of(directory: Path) -> str:
    """16 hex digits that tell a column's directory from all others.

    They say nothing of the names, which are no business of those who read a team's server. Where a
    project's number can be neither read nor kept, the machine's name and the path have to do.
    """
    directory = directory.resolve()
    project = _project_of(directory)
    if project is not None:
        with suppress(OSError):
            number = _number_of(project / FOLDER)
            return _digest([number, str(directory.relative_to(project))])
    return _digest([platform.node(), str(directory)])


def _project_of(directory: Path) -> Path | None:
    """The project of a column: the nearest folder above it with `.smallbatch`, else this one."""
    here = Path.cwd().resolve()
    inside = directory.is_relative_to(here)
    for folder in directory.parents:
        if (folder / FOLDER).is_dir():
            return folder
        if inside and folder == here:
            return here
    return None


def _number_of(folder: Path) -> str:
    """The number of the project with this `.smallbatch`, made anew where it is missing or copied.

    Raises:
        OSError: It can be neither read nor kept.
    """
    path = folder / FILE
    found = _read(path)
    if found is None:
        folder.mkdir(exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{FILE}.", suffix=".part", dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                number = secrets.token_hex(16)
                file.write(f"{number} {os.fstat(descriptor).st_ino}\n".encode())
                os.fchmod(descriptor, 0o644)
            if path.exists():  # of a project that this one was copied from, or damaged
                Path(name).replace(path)
            else:
                with suppress(FileExistsError):  # another process was first
                    os.link(name, path)
        finally:
            with suppress(FileNotFoundError):
                Path(name).unlink()
        found = _read(path)
    if found is None:
        raise OSError
    return found


def _read(path: Path) -> str | None:
    with suppress(FileNotFoundError):
        match = _CONTENT.fullmatch(durable.read(path, 100))
        if match and int(match[2]) == path.stat().st_ino:
            return match[1].decode()
    return None


def _digest(content: list[str]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
