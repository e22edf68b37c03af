"""A column that trains while tracking fails; what `smallbatch sync` makes of it afterwards."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.faults import database, processes, servers, stages

PARAMS = """
dataset: {name: digits, source: digits, subset: 160, test_subset: 60}
grid: {studies: [bn], batch_sizes: [8], base_lrs: [2^-9, 2^-7, 2^6], seeds: 2}
studies:
  bn: {model: resnet8, norm: batch, epochs: 80, weight_decay: 0.0001}
compute: {device: cpu, engine: stacked, workers: 1}
"""
COLUMN = ("train", "bn", "8")
SETTLE_S = 10.0
"""Seconds for a server that runs again to work through the requests that waited."""
LATE_S = 6.0
"""Longer than the live mirror waits for an answer."""
UNTRACKED, HEALTHY = "no tracking", "healthy server"

Case = dict[str, Any]


def run_outage(name: str, folder: Path) -> Case:
    """Train once under an outage, in an empty folder; what was lost or doubled after a sync."""
    (folder / "params.yaml").write_text(PARAMS)
    stages.run(folder, ("prepare",), tracked=False)
    (folder / "log").unlink()
    case: Case = {"stage": f"tracking: {name}"}
    try:
        case |= OUTAGES[name](folder)
    except RuntimeError as error:
        case["failed"] = str(error)
    least, most = WARNINGS.get(name, (1, 1))
    warned = len(case.get("warnings", []))
    case["warnings_amiss"] = max(least - warned, warned - most, 0)
    case["tracebacks"] = (folder / "log").read_text().count("Traceback")
    return case


def _untracked(folder: Path) -> Case:
    return _train(folder, None)


def _healthy(folder: Path) -> Case:
    with servers.mlflow_server(folder) as server:
        found = _train(folder, server.uri)
        before = database.count(folder)
        found["incomplete_before_sync"] = before["runs_lost"] + before["points_lost"]
        return found | _sync(folder, server.uri)


def _absent(folder: Path) -> Case:
    return _train(folder, f"http://127.0.0.1:{servers.free_port()}") | _sync(folder)


def _killed(folder: Path) -> Case:
    with servers.mlflow_server(folder) as server:
        found = _train(folder, server.uri, lambda: _after_points(folder, server.kill))
    with servers.mlflow_server(folder) as server:
        return found | _sync(folder, server.uri)


def _hanging(folder: Path) -> Case:
    """It hangs before the first run exists, and executes what waited when the training is over."""
    with servers.mlflow_server(folder) as server:
        server.signal(signal.SIGSTOP)
        found = _train(folder, server.uri)
        server.signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        return found | _sync(folder, server.uri)


def _late(folder: Path) -> Case:
    """Runs are created, but the answer comes when nobody waits any more."""
    with servers.mlflow_server(folder) as server:
        with servers.late(folder, server.uri, LATE_S) as uri:
            found = _train(folder, uri)
            time.sleep(SETTLE_S)
        return found | _sync(folder, server.uri)


def _errors(folder: Path) -> Case:
    with servers.failing_server() as uri:
        found = _train(folder, uri)
    return found | _sync(folder)


def _full(folder: Path) -> Case:
    with _small_disk(folder / "disk") as disk:
        uri = f"sqlite:///{disk / 'mlflow.db'}"
        initialise(folder, uri)
        filler = disk / "filler"
        filler.write_bytes(b"\0" * max(0, shutil.disk_usage(disk).free - 8192))
        found = _train(folder, uri)
        filler.unlink()
        return found | _sync(folder, uri, disk / "mlflow.db")


OUTAGES: dict[str, Callable[[Path], Case]] = {
    UNTRACKED: _untracked,
    HEALTHY: _healthy,
    "server absent": _absent,
    "server killed": _killed,
    "server hanging": _hanging,
    "server answers late": _late,
    "server answers 500": _errors,
    "database full": _full,
}
WARNINGS = {UNTRACKED: (0, 0), HEALTHY: (0, 0), "server answers late": (0, 1)}
"""The least and most warnings that a training may print, by default exactly one."""


def _train(
    folder: Path, uri: str | None, meanwhile: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train; seconds until the result files were written, and until the command ended."""
    started = time.monotonic()
    action = stages.command(COLUMN, tracked=uri is not None)
    pid = processes.start(folder, stages.with_uri(uri, action) if uri else action)
    meanwhile()
    code = processes.end(pid)
    command_seconds = time.monotonic() - started
    log = (folder / "log").read_text()
    if code:
        raise RuntimeError(f"the training ended with {code}: {log[-2000:]}")
    timing = json.loads((folder / "models/digits/bn/m8/timing.json").read_text())
    return {
        "train_seconds": timing["column"]["seconds"],
        "command_seconds": command_seconds,
        "warnings": warnings_in(log, folder),
    }


def warnings_in(log: str, folder: Path) -> list[str]:
    """Lines that warn, without this machine's paths."""
    lines = [line for line in log.splitlines() if "warning" in line.lower()]
    return [line.replace(f"{folder}/", "") for line in lines]


def _sync(folder: Path, uri: str = "", file: Path | None = None) -> dict[str, int]:
    """Replay the files twice: the second must change nothing."""
    for _ in range(2):
        replay(folder, uri or f"sqlite:///{folder / 'mlflow.db'}")
    return database.count(folder, file)


def replay(folder: Path, uri: str) -> None:
    """`smallbatch sync`.

    Raises:
        RuntimeError: it fails.
    """
    pid = processes.start(folder, stages.with_uri(uri, stages.command(("sync",), tracked=True)))
    if code := processes.end(pid):
        raise RuntimeError(f"sync ended with {code}: {(folder / 'log').read_text()[-2000:]}")


def initialise(folder: Path, uri: str) -> None:
    """Make a database's tables, in a process of its own."""

    def action() -> None:
        from smallbatch.tracking.store import open_store

        open_store(uri)

    processes.end(processes.start(folder, action))


def _after_points(folder: Path, action: Callable[[], None]) -> None:
    """Act once the database holds metric points."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with closing(sqlite3.connect(folder / "mlflow.db", timeout=5)) as file:
            if file.execute("select count(*) from metrics").fetchone()[0]:
                break
        time.sleep(0.05)
    action()


@contextmanager
def _small_disk(path: Path) -> Generator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
