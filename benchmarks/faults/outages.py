"""Tracking that fails while a column trains, and many columns that log at once."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults import processes, servers, stages

PARAMS = """
dataset: {name: digits, source: digits, subset: 160, test_subset: 60}
grid: {studies: [bn], batch_sizes: [8], base_lrs: [2^-9, 2^-7, 2^6], seeds: 2}
studies:
  bn: {model: resnet8, norm: batch, epochs: 60, weight_decay: 0.0001}
compute: {device: cpu, engine: stacked, workers: 1}
"""
COLUMNS = 10


def run_outage(name: str, folder: Path) -> dict[str, Any]:
    """Run one outage in an empty folder; what was lost or doubled after `smallbatch sync`."""
    (folder / "params.yaml").write_text(PARAMS)
    stages.run(folder, ("prepare",), tracked=False)
    return {"stage": f"tracking: {name}", **OUTAGES[name](folder)}


def _absent(folder: Path) -> dict[str, Any]:
    port = servers.free_port()
    seconds = _train(folder, f"http://127.0.0.1:{port}")
    return seconds | _sync(folder, port)


def _killed(folder: Path) -> dict[str, Any]:
    port = servers.free_port()
    server = servers.MlflowServer(folder, _backend(folder), port)
    found = _train(folder, server.uri, lambda: _after_points(folder, server.kill))
    return found | _sync(folder, port)


def _hanging(folder: Path) -> dict[str, Any]:
    port = servers.free_port()
    server = servers.MlflowServer(folder, _backend(folder), port)
    found = _train(
        folder, server.uri, lambda: _after_points(folder, lambda: server.signal(signal.SIGSTOP))
    )
    server.signal(signal.SIGCONT)
    server.kill()
    return found | _sync(folder, port)


def _errors(folder: Path) -> dict[str, Any]:
    with servers.failing_server() as uri:
        found = _train(folder, uri)
    return found | _sync(folder, servers.free_port())


def _full(folder: Path) -> dict[str, Any]:
    with _small_disk(folder / "disk") as disk:
        uri = f"sqlite:///{disk / 'mlflow.db'}"
        _initialise(uri)
        filler = disk / "filler"
        filler.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - 8192))
        found = _train(folder, uri)
        filler.unlink()
        _call(folder, uri)
        return found | stages.points(folder, disk / "mlflow.db")


def _ten_to_sqlite(folder: Path) -> dict[str, Any]:
    return _ten(folder, _backend(folder)) | stages.points(folder)


def _ten_to_postgres(folder: Path) -> dict[str, Any]:
    with servers.postgres(folder) as uri:
        found = _ten(folder, uri)
        return found | stages.points(folder, uri)


OUTAGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "server absent": _absent,
    "server killed": _killed,
    "server hanging": _hanging,
    "server answers 500": _errors,
    "database full": _full,
    "ten columns to sqlite": _ten_to_sqlite,
    "ten columns to PostgreSQL": _ten_to_postgres,
}


def _backend(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def _train(folder: Path, uri: str, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train under an outage; seconds of the training, against those without any tracking."""
    plain = folder.with_name(folder.name + "-plain")
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("disk", "*.db*"))
    stages.run(plain, ("train", "bn", "8"), tracked=False)
    untracked = _seconds(plain)
    shutil.rmtree(plain)
    (folder / "log").unlink()
    pid = processes.start(folder, _with(uri, stages.command(("train", "bn", "8"), tracked=True)))
    meanwhile()
    code = processes.end(pid)
    log = (folder / "log").read_text()
    if code:
        raise RuntimeError(f"the training failed with {code}: {log}")
    warnings = [line for line in log.splitlines() if "warning" in line.lower()]
    return {
        "train_seconds": _seconds(folder),
        "untracked_seconds": untracked,
        "warnings": len(warnings),
        "tracebacks": log.count("Traceback"),
    }


def _seconds(folder: Path) -> float:
    import json

    timing = json.loads((folder / "models/digits/bn/m8/timing.json").read_text())
    return timing["column"]["seconds"]


def _sync(folder: Path, port: int) -> dict[str, Any]:
    server = servers.MlflowServer(folder, _backend(folder), port)
    try:
        _call(folder, server.uri)
        _call(folder, server.uri)
    finally:
        server.kill()
    return stages.points(folder)


def _call(folder: Path, uri: str) -> None:
    pid = processes.start(folder, _with(uri, stages.command(("sync",), tracked=True)))
    if code := processes.end(pid):
        raise RuntimeError(f"sync ended with {code}: {(folder / 'log').read_text()[-2000:]}")


def _ten(folder: Path, uri: str) -> dict[str, Any]:
    """Ten copies of a column, as ten studies, replayed at once, each by a mirror of its own."""
    stages.run(folder, ("train", "bn", "8"), tracked=False)
    (folder / "models/digits/bn").rename(folder / "bn")
    pids = [processes.start(folder, _with(uri, _mirrored(folder, i))) for i in range(COLUMNS)]
    codes = [processes.end(pid) for pid in pids]
    incomplete = sum(code != 0 for code in codes)
    _call(folder, uri)
    return {"incomplete_before_sync": incomplete}


def _mirrored(folder: Path, i: int) -> Callable[[], None]:
    """Log a column as a training does, epoch by epoch, then from its files."""

    def action() -> None:
        import pandas as pd

        from smallbatch.tracking import LiveMirror
        from smallbatch.tracking.records import read_column

        directory = folder / f"models/digits/bn{i}/m8"
        shutil.copytree(folder / "bn/m8", directory)
        record = directory / "runs.json"
        record.write_text(record.read_text().replace('"study": "bn"', f'"study": "bn{i}"'))
        column = read_column(directory)
        mirror = LiveMirror()
        mirror.start(column.info)
        infos = {run.info.run: run.info for run in column.runs}
        history = pd.read_parquet(directory / "history.parquet").sort_values(["epoch", "run"])
        for row in history.to_dict("records"):
            time.sleep(0.02)
            mirror.run_epoch(infos[str(row["run"])], {str(k): v for k, v in row.items()})
        raise SystemExit(0 if mirror.finish(directory) else 3)

    return action


def _with(uri: str, action: Callable[[], None]) -> Callable[[], None]:
    def tracked() -> None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        action()

    return tracked


def _after_points(folder: Path, action: Callable[[], None]) -> None:
    """Act once the database holds metric points."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with closing(sqlite3.connect(folder / "mlflow.db", timeout=5)) as database:
            if database.execute("select count(*) from metrics").fetchone()[0]:
                break
        time.sleep(0.05)
    action()


def _initialise(uri: str) -> None:
    from smallbatch.tracking.store import open_store

    open_store(uri)


@contextmanager
def _small_disk(path: Path) -> Generator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
