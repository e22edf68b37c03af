"""What takes seconds to make anew, made once for all processes of the tests: an empty database."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; from smallbatch.tracking.store import open_store; open_store(sys.argv[1])"


def shared(name: str, make: Callable[[Path], None]) -> Path:
    """A folder to read from, which the first process that asks for it fills."""
    root = Path(os.environ["SMALLBATCH_TEST_SHARED"])
    folder, part = root / name, root / f"{name}.part"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def _make_database(folder: Path) -> None:
    """An initialised database of MLflow's, without runs."""
    original = folder / "original.db"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, f"sqlite:///{original}"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    with closing(sqlite3.connect(original)) as connection:
        connection.execute(f"vacuum into '{folder / 'copy.db'}'")
    with closing(sqlite3.connect(folder / "copy.db")) as connection:
        connection.execute("pragma journal_mode=wal")
    original.unlink()


def empty_database() -> Path:
    """The one that all tests copy."""
    return shared("database", _make_database) / "copy.db"


def add_database(folder: Path) -> None:
    """Put it where smallbatch looks for one."""
    shutil.copy(empty_database(), folder / "mlflow.db")
    (folder / "mlflow.db").chmod(0o600)
