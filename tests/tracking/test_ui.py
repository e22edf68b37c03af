"""`ui`: a real server on the local database."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import psutil
import pytest

from smallbatch.errors import UserError
from smallbatch.tracking import sync, ui
from tests.tracking.planted import plant

SOURCE = Path(__file__).parents[2] / "src"


def get(url: str, token: str | None = None, cookie: str = "") -> tuple[int, bytes]:
    """The status and the content that the server answers with."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers={**headers, "Cookie": cookie})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def check_access(address: str, token: str, port: int) -> None:
    """Nobody is answered without the token, and MLflow's other services not with it."""
    for path in ("/", "/health", "/api/2.0/mlflow/experiments/search?max_results=1"):
        for wrong in (None, token[:-1]):
            code, told = get(address + path, wrong)
            assert code == 403
            assert told == b"Open the link that `smallbatch ui` printed: it has a token.\n"
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar := CookieJar()))
    with browser.open(f"{address}/?token={token}", timeout=10) as answer:
        assert answer.url == f"{address}/"
        assert b"<html" in answer.read()
    assert [(cookie.name, cookie.value) for cookie in jar] == [(f"smallbatch-{port}", token)]
    for path in ("/ajax-api/3.0/mlflow/assistant/config", "/ajax-api/3.0/jobs/1"):
        assert get(address + path, token)[0] == 404
    place = {"name": "elsewhere", "artifact_location": "file:///etc"}
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/experiments/create",
        json.dumps(place).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
    )
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=10)


@pytest.mark.slow
def test_it_serves_runs_and_artifacts_on_loopback(columns: Any, tables: Any) -> None:
    sync(columns.write(8))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = f"from smallbatch.tracking import ui; ui(port={port})"
    planted = plant(Path())
    log, temporary = Path("ui.log"), Path("temporary").absolute()
    temporary.mkdir()
    with log.open("wb") as told:
        server = subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONPATH": str(SOURCE), "TMPDIR": str(temporary)},
            stdout=told,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 180
        while not (link := re.search(r"/\?token=([\w-]{43})#", log.read_text())):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        token = link[1]
        # From then on the port is the server's, and who asks is answered once it can.
        assert get(f"{address}/health", token) == (200, b"OK")
        check_access(address, token, port)
        query = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=digits/study"
        assert json.loads(get(query, token)[1])["experiment"]["name"] == "digits/study"
        [(model,)] = tables.query("select value from tags where key = 'smallbatch.model'")
        model_id = model.removeprefix("models:/")
        listing = f"{address}/ajax-api/2.0/mlflow/logged-models/{model_id}/artifacts/directories"
        names = {file["path"] for file in json.loads(get(listing, token)[1])["files"]}
        assert {"MLmodel", "requirements.txt", "data"} <= names
        assert not planted.exists()
        # MLflow's files with known names lie where no other user can plant a link.
        assert not [it for it in temporary.iterdir() if re.search("lock|mlflow", it.name)]
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        assert len(family) > 1
        assert not [it for it in family if token in " ".join(it.cmdline())]
        assert log.read_text().count(token) == 1  # the link, and no log of requests
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


def test_nobody_else_can_listen_when_the_link_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who opened it would show another user the token."""

    def asked(_: str, command: list[str]) -> None:
        assert "?token=" in capsys.readouterr().out
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
        assert os.get_inheritable(int(command[4]))
        raise InterruptedError

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(os, "execv", asked)
    with pytest.raises(InterruptedError):
        ui(port=port)
