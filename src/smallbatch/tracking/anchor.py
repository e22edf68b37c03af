"""Has the embedded database of a project that was moved or copied name the project's own folder.

MLflow stores where artifacts lie as absolute places. Those that were in `mlartifacts` beside the
database, wherever that was then, are in `mlartifacts` beside it now.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from smallbatch.tracking import trust

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow stores places."""
_BUSY_S = 60


class _Move(NamedTuple):
    """The beginning of places, as stored and as it has to be; both end with a slash."""

    old: str
    new: str


def is_moved(database: Path, artifacts: Path) -> bool:
    """Whether a database of MLflow's names another such folder for experiments than this one."""
    with closing(_connect(database)) as connection:
        return _has(connection, "experiments", "artifact_location") and any(
            _moves(connection, artifacts)
        )


def anchor(database: Path, artifacts: Path) -> None:
    """Let all places of the experiments that were in such a folder elsewhere be in this one.

    No file is opened, and nothing outside of this folder is named: of a place that is not the
    folder of its experiment, `mlartifacts/<experiment>`, nothing is changed.

    Args:
        database: The sqlite database.
        artifacts: `mlartifacts` beside it, an absolute path.
    """
    with closing(_connect(database)) as connection, connection:
        connection.execute("BEGIN IMMEDIATE")
        for move in list(_moves(connection, artifacts)):
            for table, column in _TABLES:
                if _has(connection, table, column):
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608
                        f"WHERE substr({column}, 1, ?) = ? AND instr({column}, '/../') = 0",
                        (move.new, len(move.old) + 1, len(move.old), move.old),
                    )
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?",
                (move.new.removesuffix("/"), move.old.removesuffix("/")),
            )


def _moves(connection: sqlite3.Connection, artifacts: Path) -> Iterator[_Move]:
    """What begins the places of each experiment that are elsewhere."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    found = connection.execute("SELECT name, artifact_location FROM experiments")
    for name, location in found.fetchall():
        if not str(location).startswith(("file:///", "/")):
            continue
        end = (artifacts.name, *Path(name).parts)
        path = Path(local_file_uri_to_path(location))
        if ".." in end or path.parts[-len(end) :] != end or trust.is_inside(location, artifacts):
            continue
        new = artifacts / name
        yield _Move(f"{location}/", f"{new.as_uri() if location[0] == 'f' else new}/")


def _has(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(database, timeout=_BUSY_S, isolation_level=None)
