"""Where a store is read from and written to, if others may write it.

Whoever may write its folder can plant a database, a link or a folder there, and a database says
where its experiments keep their artifacts: anywhere, or on a server that would be sent a login.
So does an MLflow server, to whose experiments others may have given a place.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

from smallbatch import private
from smallbatch.errors import UserError
from smallbatch.tracking.uri import VARIABLE

JOURNAL = "-journal"
SUFFIXES = ("", JOURNAL, "-wal", "-shm")
"""Of an sqlite database and the files that it has beside it."""

_MAGIC = bytes.fromhex("d9d505f920a163d7")
"""Ends an sqlite journal that names the journal of a transaction over several databases."""

_COMPUTED = """
    SELECT type, name FROM sqlite_master
    WHERE type = 'view' OR (type = 'trigger' AND tbl_name <> 'secrets')
    UNION ALL
    SELECT 'virtual table', name FROM sqlite_master WHERE sql LIKE 'create virtual %'
"""
"""What of an sqlite database is no table with values in it.

One of MLflow's has none of it, but for a trigger on the keys of its gateway, which is not served.
"""
_BUSY_S = 5

ALLOWED = "MLFLOW_ALLOWED_HOST_ADDRESSED_ARTIFACT_SCHEMES"
"""MLflow's variable of the schemes, with commas, whose places may be anywhere; `file` as well."""
_HOSTS = ("http", "https", "mlflow-artifacts", "ftp", "sftp")
"""Schemes of places that are written with a login or key of this user."""
_HERE = ("", "file", "dbfs", "runs", "models")
"""Schemes of places that are a folder of this machine, or may turn out to be one."""


def being_made(database: Path) -> Path:
    """Where a database is made; git ignores the name wherever it ignores `mlflow.db*`."""
    return database.with_name(f"{database.name}.new")


def check_database(database: Path) -> None:
    """Refuse a database, or a file beside it that sqlite would read, which another user made.

    So too what a database would compute while it is read or written, which may take for ever.

    Raises:
        UserError: One of them is another user's, or is reached by a link of another user, or is no
            regular file; or a journal names a file that sqlite would delete. One of MLflow's names
            none, since its transactions are of one database. Or the database, from wherever it
            was copied, has views, triggers or virtual tables.
    """
    _look(database, database.parent)
    real = database.resolve()
    for whole in (real, being_made(real)):
        for suffix in SUFFIXES:
            path = whole.with_name(whole.name + suffix)
            found = _look(path, real.parent)
            if found is not None and not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path}: no regular file; remove it")
            if found is not None and suffix == JOURNAL and _names_a_file(path):
                raise UserError(f"{path}: names another file, which sqlite would delete; remove it")
    _check_tables(real)


def check_folders(artifacts: Path, inside: Path) -> None:
    """Refuse folders for artifacts, as far as they are there, that another user made.

    Args:
        artifacts: The folder of all artifacts, in that of the database.
        inside: A path in it, as it is or without links.

    Raises:
        UserError: One of them is another user's, or is reached by a link of another user.
    """
    _look(artifacts, artifacts.parent)  # before a link there is followed
    roots = (artifacts, artifacts.resolve())
    for path in (inside, *inside.parents):
        if any(path.is_relative_to(root) for root in roots):
            _look(path, artifacts.parent)


def is_inside(location: str, folder: Path) -> bool:
    """Whether artifacts at this location, a URI or a path, would lie in a folder."""
    with suppress(ValueError, OSError, RuntimeError):  # the latter: links in a circle
        return local_path(location).is_relative_to(folder.resolve())
    return False


def is_remote(location: str, server: str) -> bool:
    """Whether a place that a server names is the server itself, a bucket, or allowed by scheme."""
    from mlflow.utils.uri import get_uri_scheme

    try:
        parts, own = urlsplit(location), urlsplit(server)
    except ValueError:
        return False
    scheme = get_uri_scheme(location)  # MLflow takes `C:` for a path, on all systems
    if (scheme or "file") in os.environ.get(ALLOWED, "").lower().replace(" ", "").split(","):
        return True
    if scheme in _HERE:
        return False
    if scheme not in _HOSTS:
        return bool(parts.netloc)
    if ".." in parts.path:  # another route of the server
        return False
    if scheme == "mlflow-artifacts":
        return parts.netloc in ("", own.netloc.rpartition("@")[2])
    return (scheme, parts.netloc) == (own.scheme, own.netloc.rpartition("@")[2])


def local_path(location: str) -> Path:
    """Where MLflow's local artifacts of this location lie, without links."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    return Path(local_file_uri_to_path(location)).resolve()


def _look(path: Path, folder: Path) -> os.stat_result | None:
    """What is at a path in a folder, or where a link of this user there leads; None if nothing is.

    It is not opened, since closing a database's file would release sqlite's locks of it.
    """
    try:
        found = path.lstat()
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in (0, os.geteuid()):
                raise UserError(
                    f"{path}: a link that another user made, to {path.readlink()}; runs are logged "
                    f"through links of this user alone: remove it, or name a store by {VARIABLE}"
                )
            return path.stat()
    except FileNotFoundError:
        return None
    if not private.is_of_project(found, folder) and not _is_of_member(found, folder):
        raise UserError(
            f"{path}: made by another user ({_name(found.st_uid)}), who does not own {folder}; "
            f"remove it, or name a store by {VARIABLE}"
        )
    return found


def _check_tables(database: Path) -> None:
    with (
        suppress(sqlite3.DatabaseError),  # there is none yet, or MLflow gives a better message
        closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", _BUSY_S, uri=True)) as connection,
    ):
        for kind, name in connection.execute(_COMPUTED):
            raise UserError(
                f"{database}: has the {kind} {name!r}, which MLflow does not make; drop it, or "
                f"name a store by {VARIABLE}"
            )


def _names_a_file(journal: Path) -> bool:
    with suppress(FileNotFoundError), journal.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(_MAGIC)))
        return file.read() == _MAGIC
    return False


def _is_of_member(found: os.stat_result, folder: Path) -> bool:
    """Whether its owner belongs to the group that may write the folder.

    The files beside a database are of whoever used it first, and all who share it use them.
    """
    shared = folder.stat()
    if not shared.st_mode & stat.S_IWGRP:
        return False
    try:
        user = pwd.getpwuid(found.st_uid)
        return shared.st_gid in os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OSError):
        return False


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
