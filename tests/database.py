"""MLflow's database with its tables and no runs, which takes seconds to make anew."""

from __future__ import annotations

import atexit
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; from smallbatch.tracking.store import open_store; open_store(sys.argv[1])"


@cache
def empty_database() -> Path:
    """The one that all tests of this process copy."""
    folder = Path(tempfile.mkdtemp(prefix="smallbatch-test-database-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-c", PROGRAM, f"sqlite:///{folder / 'original.db'}"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    with closing(sqlite3.connect(folder / "original.db")) as connection:
        connection.execute(f"vacuum into '{folder / 'copy.db'}'")
    with closing(sqlite3.connect(folder / "copy.db")) as connection:
        connection.execute("pragma journal_mode=wal")
    (folder / "original.db").unlink()
    return folder / "copy.db"


def add_database(folder: Path) -> None:
    """Put it where smallbatch looks for one."""
    shutil.copy(empty_database(), folder / "mlflow.db")
    (folder / "mlflow.db").chmod(0o600)
