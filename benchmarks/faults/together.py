"""Columns that log at once to one fresh database."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faults import database, outages, processes, servers, stages

STUDIES = 2
"""Columns of one study write to one experiment, those of others beside it."""
COLUMNS = 10
FEW = 4
"""In the short version."""
EPOCHS = 20
EPOCH_S = 0.1
"""Seconds from one epoch of a run to the next run's: all must be logging at the same time."""


def run_together(name: str, folder: Path) -> dict[str, Any]:
    """Log columns at once; what is missing before `smallbatch sync`, and after it."""
    count, store = TOGETHER[name]
    params = outages.PARAMS.replace("epochs: 80", f"epochs: {EPOCHS}")
    sizes = f"batch_sizes: {[*_batch_sizes(count)]}"
    (folder / "params.yaml").write_text(params.replace("batch_sizes: [8]", sizes))
    stages.run(folder, ("prepare",), tracked=False)
    for m in _batch_sizes(count):
        stages.run(folder, ("train", "bn", str(m)), tracked=False)
    (folder / "models/digits/bn").rename(folder / "bn")
    if store == "sqlite":
        found = _together(folder, count, f"sqlite:///{folder / 'mlflow.db'}", None)
    else:
        with servers.postgres(folder) as uri:
            found = _together(folder, count, uri, uri)
    log = (folder / "log").read_text()
    return {"stage": f"tracking: {name}", **found, "tracebacks": log.count("Traceback")}


TOGETHER = {
    "ten columns to sqlite": (COLUMNS, "sqlite"),
    "ten columns to PostgreSQL": (COLUMNS, "PostgreSQL"),
    "four columns to PostgreSQL": (FEW, "PostgreSQL"),
}


def _together(folder: Path, count: int, uri: str, counted: str | None) -> dict[str, Any]:
    pids = [
        processes.start(folder, stages.with_uri(uri, _mirrored(folder, i))) for i in range(count)
    ]
    unfinished = sum(processes.end(pid) != 0 for pid in pids)
    warned = outages.warnings_in((folder / "log").read_text(), folder)
    before = database.count(folder, counted)
    outages.replay(folder, uri)
    missing = unfinished + before["runs_lost"] + before["points_lost"]
    found = {"incomplete_before_sync": missing, "warnings": warned, "warnings_amiss": len(warned)}
    return found | database.count(folder, counted)


def _batch_sizes(count: int) -> range:
    return range(8, 8 + count // STUDIES)


def _mirrored(folder: Path, i: int) -> Callable[[], None]:
    """Log a copy of a column, in one of the studies, as a training does, then from its files."""
    study, m = f"bn{i % STUDIES}", 8 + i // STUDIES

    def action() -> None:
        import pandas as pd

        from smallbatch.tracking import LiveMirror
        from smallbatch.tracking.records import read_column

        directory = folder / f"models/digits/{study}/m{m}"
        shutil.copytree(folder / f"bn/m{m}", directory)
        record = directory / "runs.json"
        record.write_text(record.read_text().replace('"study": "bn"', f'"study": "{study}"'))
        column = read_column(directory)
        mirror = LiveMirror()
        mirror.start(column.info)
        infos = {run.info.run: run.info for run in column.runs}
        history = pd.read_parquet(directory / "history.parquet").sort_values(["epoch", "run"])
        for row in history.to_dict("records"):
            time.sleep(EPOCH_S)
            mirror.run_epoch(infos[str(row["run"])], {str(k): v for k, v in row.items()})
        raise SystemExit(0 if mirror.finish(directory) else 3)

    return action
