"""Mirroring while training: real processes, real servers, bounded waiting."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil
import pytest

from smallbatch.tracking import ColumnInfo, LiveMirror, RunInfo, live_process, sync
from smallbatch.tracking.locks import exclusive
from smallbatch.tracking.records import read_column
from smallbatch.tracking.uri import TrackingUri

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

SOURCE = Path(__file__).parents[2] / "src"


def replay(mirror: LiveMirror, directory: Path, epochs: int = 1000) -> float:
    """Feeds a finished column to the mirror as training would; the longest call in seconds."""
    column = read_column(directory)
    longest = 0.0
    mirror.start(column.info)
    history = pd.read_parquet(directory / "history.parquet").sort_values(["epoch", "run"])
    infos = {run.info.run: run.info for run in column.runs}
    for row in history[history["epoch"] <= epochs].to_dict("records"):
        started = time.perf_counter()
        mirror.run_epoch(infos[str(row["run"])], {str(key): value for key, value in row.items()})
        longest = max(longest, time.perf_counter() - started)
    return longest


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_runs_show_while_they_train_and_are_complete_at_the_end(
    columns: Any, tables: Any, expected_points: Any
) -> None:
    directory = columns.write(8, diverged=(2.0**-3,))
    mirror = LiveMirror()
    replay(mirror, directory, epochs=2)
    running = "select count(*) from runs where status = 'RUNNING'"
    wait_until(lambda: tables.query(running) == [(5,)] and len(tables.points()) == 4 * (2 * 5 + 2))
    assert mirror.finish(directory)
    assert sorted(tables.points()) == expected_points(directory)
    assert tables.query("select status, count(*) from runs group by 1") == [("FINISHED", 5)]
    before = tables.content()
    assert sync(directory).unchanged == 5
    assert tables.content() == before


@pytest.mark.slow
def test_runs_of_a_column_elsewhere_stay_until_they_are_said_to_have_ended(
    columns: Any, tables: Any
) -> None:
    column = read_column(columns.write(8)).info
    run = RunInfo("a" * 16, 2.0**-3, 0, 10)
    start = {"kind": "start", **asdict(column), "time": 1.0}
    mirror = LiveMirror(niceness=0)
    mirror.forward("x", start)
    row = {"epoch": 1, "updates": 5, "train_loss": 2.0}
    mirror.forward("x", {"kind": "epoch", "run": asdict(run), "row": row, "time": 2.0})
    statuses = "select distinct status from runs"
    wait_until(lambda: tables.query("select count(*) from runs") == [(2,)])
    mirror.abort()
    later = LiveMirror(niceness=0)  # of another command
    assert tables.query(statuses) == [("RUNNING",)]
    later.forward("x", start)
    later.forward("x", {"kind": "kill"})
    later.abort()
    wait_until(lambda: tables.query(statuses) == [("KILLED",)])
    assert tables.query("select count(*) from runs") == [(2,)]


@pytest.mark.slow
def test_one_mirror_completes_several_columns_one_after_another(columns: Any, tables: Any) -> None:
    directories = [columns.write(m) for m in (2, 4, 8)]
    mirror = LiveMirror(niceness=0)
    started = time.perf_counter()
    for directory in directories:
        mirror.finish_later(directory)
    assert time.perf_counter() - started < 0.5
    assert mirror.finish(directories[-1])
    assert tables.query("select status, count(*) from runs group by 1") == [("FINISHED", 15)]
    assert sync(directories).unchanged == 15


@pytest.mark.slow
def test_speeds_can_wait_until_the_process_has_begun(columns: Any, tables: Any) -> None:
    """It makes the database before that; then it does nothing until it is told something."""
    directory = columns.write(8)
    mirror = LiveMirror(niceness=0)
    mirror.rest(timeout_s=60)
    assert mirror._process
    process = psutil.Process(mirror._process.pid)
    assert tables.query("select count(*) from experiments") == [(1,)]
    before = process.cpu_times()
    time.sleep(0.5)
    assert process.cpu_times().user - before.user < 0.1
    began = time.monotonic()
    mirror.rest(timeout_s=60)
    assert time.monotonic() - began < 1
    replay(mirror, directory)
    assert mirror.finish(directory)

    slow = LiveMirror()
    slow.rest(lambda: True)
    assert not slow._began
    slow.abort()

    dead = LiveMirror()
    assert dead._process
    dead._process.kill()
    began = time.monotonic()
    dead.rest(timeout_s=60)
    assert time.monotonic() - began < 10
    dead.abort()
    dead.rest(timeout_s=60)  # without a process there is nothing to wait for


@pytest.mark.slow
def test_a_column_that_cannot_be_completed_later_is_told_at_the_end(
    columns: Any, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = columns.write(8)
    mirror = LiveMirror()
    mirror.finish_later(workplace / "models" / "missing")
    mirror.finish_later(directory)
    assert not mirror.finish(directory)
    assert "missing" in capsys.readouterr().err


@pytest.mark.slow
def test_an_aborted_column_is_marked_and_taken_up_again(
    columns: Any, tables: Any, expected_points: Any
) -> None:
    directory = columns.write(8)
    mirror = LiveMirror()
    replay(mirror, directory, epochs=3)
    wait_until(lambda: len(tables.points()) == 4 * (3 * 5 + 2))
    started = time.perf_counter()
    mirror.abort()
    assert time.perf_counter() - started < 0.5
    killed = "select count(*) from runs where status = 'KILLED'"
    wait_until(lambda: tables.query(killed) == [(5,)])
    again = LiveMirror()
    replay(again, directory)
    wait_until(lambda: len(tables.points()) >= 4 * (6 * 5 + 2))
    assert again.finish(directory)
    assert sorted(tables.points()) == expected_points(directory)
    assert tables.query("select count(*) from runs") == [(5,)]


@pytest.mark.slow
def test_a_complete_column_that_trains_again_is_complete_at_its_end(
    columns: Any, tables: Any
) -> None:
    directory = columns.write(8)
    sync(directory)
    mirror = LiveMirror()
    replay(mirror, directory)
    wait_until(lambda: tables.query("select name from runs where status = 'RUNNING'") == [("m=8",)])
    assert mirror.finish(directory)
    assert tables.query("select status, count(*) from runs group by 1") == [("FINISHED", 5)]
    assert sync(directory).unchanged == 5


@pytest.mark.slow
def test_a_single_run_is_the_same_live_and_replayed(columns: Any, tables: Any) -> None:
    directory = columns.write(8, base_lrs=(2.0**-6,), single_seed=1)
    info = read_column(directory).info
    assert (info.stage, info.single) == (None, read_column(directory).runs[0].info.run)
    mirror = LiveMirror()
    replay(mirror, directory)
    assert mirror.finish(directory)
    assert sync(directory).unchanged == 2
    assert tables.query("select count(*) from runs") == [(2,)]


@pytest.fixture
def hanging_server() -> Generator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def failing_server() -> Generator[str]:
    """Answers everything with status 500."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        port = server.getsockname()[1]

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        connection.sendall(
                            b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                        )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "timeout_s", "at_most_s"),
    [
        ("absent", 4, 8),
        ("failing_server", 4, 8),
        ("hanging_server", 60, 40),  # given up early: after 10, and the start of its process
    ],
)
def test_a_bad_server_costs_the_trainer_nothing_but_a_warning(
    kind: str,
    timeout_s: float,
    at_most_s: float,
    columns: Any,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    expected_points: Any,
    tables: Any,
) -> None:
    uri = "http://127.0.0.1:9" if kind == "absent" else request.getfixturevalue(kind)
    directory = columns.write(8, epochs=60)
    mirror = LiveMirror(uri)
    assert replay(mirror, directory) < 0.5
    started = time.monotonic()
    assert not mirror.finish(directory, timeout_s=timeout_s)
    assert time.monotonic() - started < at_most_s
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: MLflow ({uri}) does not show all of {directory}: ")
    assert line.endswith("`smallbatch sync` will replay it")
    sync(directory)
    assert sorted(tables.points()) == expected_points(directory)


@pytest.mark.slow
def test_a_server_killed_while_training(
    columns: Any,
    tables: Any,
    start_server: Callable[[str], Any],
    expected_points: Any,
    capsys: pytest.CaptureFixture[str],
    workplace: Path,
) -> None:
    directory = columns.write(8)
    server = start_server("server")
    mirror = LiveMirror(server.uri)
    replay(mirror, directory, epochs=3)
    logged = tables.of(workplace / "server.db")
    wait_until(lambda: len(logged.points()) == 4 * (3 * 5 + 2))
    server.kill()
    assert replay(mirror, directory) < 0.5
    assert not mirror.finish(directory, timeout_s=4)
    assert "will replay" in capsys.readouterr().err
    assert sync(directory).runs_created == 5  # to another server: test_sync.py
    assert sorted(tables.points()) == expected_points(directory)


@pytest.mark.slow
def test_the_first_database_is_finished_though_the_column_is_over(
    columns: Any, tables: Any, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "mlflow.db").unlink()
    directory = columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    with exclusive(TrackingUri.parse(), "initialise"):  # stands for a creation that takes long
        mirror = LiveMirror()
        process: subprocess.Popen[bytes] = mirror._process  # type: ignore[assignment]
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
        assert not mirror.finish(directory, timeout_s=0.5)
        assert "its database is still being made" in capsys.readouterr().err
        assert Path(f"/proc/{process.pid}").exists()
        assert not (workplace / "mlflow.db").exists()
    made = "select status, count(*) from runs group by 1"
    wait_until((workplace / "mlflow.db").exists)
    assert LiveMirror().finish(directory)
    assert tables.query(made) == [("FINISHED", 2)]
    process.returncode = None
    # 1: at the lowest priority its own replay took longer than it may live after its trainer.
    assert process.wait(60) in (0, 1)
    assert not [*workplace.glob("*.new*")]


def test_a_full_pipe_drops_epochs_and_does_not_block(columns: Any) -> None:
    directory = columns.write(8)
    mirror = LiveMirror()
    process: subprocess.Popen[bytes] = mirror._process  # type: ignore[assignment]
    os.kill(process.pid, signal.SIGSTOP)
    run = RunInfo("0" * 16, 0.5, 0, 100)
    started = time.perf_counter()
    mirror.start(read_column(directory).info)
    for epoch in range(20_000):
        mirror.run_epoch(run, {"epoch": epoch, "lr": 0.5, "train_loss": 1.0})
    assert time.perf_counter() - started < 5
    assert mirror._size <= 4 * 2**20 + 65536
    assert not mirror.finish(directory, timeout_s=0.5)


def test_it_never_raises(columns: Any, capsys: pytest.CaptureFixture[str]) -> None:
    directory = columns.write(8)
    mirror = LiveMirror()
    process: subprocess.Popen[bytes] = mirror._process  # type: ignore[assignment]
    process.kill()
    process.wait()
    column = ColumnInfo("d", "f", "s", 8, {"odd": object()})
    run = RunInfo("0" * 16, 0.5, 0, 100)
    mirror.start(column)
    mirror.run_epoch(run, {"epoch": 1, "lr": object()})
    mirror.run_epoch(run, {"epoch": 1, "lr": 0.5})
    assert not mirror.finish(directory, timeout_s=2)
    mirror.abort()
    mirror.run_epoch(run, {"epoch": 1})
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_process_leaves_when_its_trainer_is_killed() -> None:
    program = (
        "import os, time; from smallbatch.tracking import LiveMirror\n"
        "mirror = LiveMirror(); print(mirror._process.pid, flush=True); time.sleep(60)"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    with trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        trainer.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_importing_and_using_it_does_not_import_mlflow() -> None:
    program = (
        "import sys; from smallbatch.tracking import LiveMirror\n"
        "LiveMirror().abort(); print({'mlflow', 'torch', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "set()"
    assert done.stderr == ""


def test_a_store_that_another_process_writes_to_is_in_reach(
    columns: Any, tables: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the column's end would wait for it as briefly as for a server that is gone."""
    column = read_column(columns.write(8))
    answers = io.StringIO()
    mirror = live_process.Mirror(answers)
    mirror.handle({"kind": "start", **asdict(column.info), "time": time.time()})
    row = {"epoch": 1, "train_loss": 0.5, "updates": 100}
    run = asdict(column.runs[0].info)
    mirror.handle({"kind": "epoch", "run": run, "row": row, "time": time.time()})
    monkeypatch.setattr(live_process, "LOCK_S", 0.05)
    monkeypatch.setattr(live_process, "FLUSH_S", 0.0)
    with exclusive(TrackingUri.parse(), column.info.experiment):
        mirror.tick()
    assert json.loads(answers.getvalue()) == {"reached": True}
    mirror.tick()
    logged = "select count(*) from metrics where key = 'train_loss'"
    assert tables.query(logged) == [(1,)]


def test_messages_survive_json() -> None:
    column = ColumnInfo("d", "f", "s", 8, {"milestones": (0.5,)}, environment={"gpu": None})
    back = ColumnInfo(**json.loads(json.dumps(asdict(column))))
    assert back.key == column.key
