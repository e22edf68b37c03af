"""`ui`: a real server on the local database."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync, ui
from tests.tracking.planted import plant

SOURCE = Path(__file__).parents[2] / "src"


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


@pytest.mark.slow
def test_it_serves_runs_and_artifacts_on_loopback(columns: Any, tables: Any) -> None:
    sync(columns.write(8))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"from smallbatch.tracking import ui; ui(port={port})"
    planted = plant(Path())
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while True:
            try:
                assert get(f"{address}/health") == b"OK"
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert b"<html" in get(address)
        query = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits/study"
        assert json.loads(get(query))["experiment"]["name"] == "digits/study"
        [(model,)] = tables.query("select value from tags where key = 'smallbatch.model'")
        model_id = model.removeprefix("models:/")
        listing = f"{address}/ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/directories"
        names = {file["path"] for file in json.loads(get(listing))["files"]}
        assert {"MLmodel", "requirements.txt", "data"} <= names
        assert not planted.exists()
    finally:
        server.terminate()
        server.wait(60)


def test_a_server_has_its_own_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="which has a UI of its own"):
        ui()


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "postgresql://me@host/mlflow"])
def test_what_is_neither_a_server_nor_sqlite_has_no_ui_here(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: .*; (allowed: sqlite|install it)"):
        ui()


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--port: cannot listen on 127.0.0.1:{port}"):
            ui(port=port)
