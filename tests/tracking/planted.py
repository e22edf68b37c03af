"""Modules in a folder that a server is started in, none of which it may run."""

from __future__ import annotations

from pathlib import Path

NAMES = ("mlflow", "uvicorn", "flask", "sqlalchemy", "psycopg2", "multiprocessing", "smallbatch")


def plant(folder: Path) -> Path:
    """Write modules that leave a mark once they are run; the path of the mark."""
    folder.mkdir(exist_ok=True)
    mark = folder.absolute() / "planted.ran"
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open(r'{mark}', 'w')\nraise SystemExit(3)\n")
    return mark
