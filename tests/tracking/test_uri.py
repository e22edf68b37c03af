"""Tracking URIs: what is read, what is refused, and what nobody is shown."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from smallbatch.cli.main import main
from smallbatch.errors import UserError
from smallbatch.tracking import LiveMirror, sync
from smallbatch.tracking.store import open_store
from smallbatch.tracking.uri import TrackingUri

REFUSED = [
    ("sqlite://", "names no file"),
    ("sqlite:///", "names no file"),
    ("sqlite:///:memory:", "names no file"),
    ("sqlite:///file::memory:?uri=true", "names no file"),
    ("sqlite:///file:x.db?mode=memory&uri=true", "mode=memory"),
    ("sqlite:///file:x.db", "uri=true"),
    ("sqlite:///x.db?uri=perhaps", "uri: allowed is true or false"),
    ("sqlite://mlflow.db", "three: sqlite:///mlflow.db"),
    ("sqlite:///x.db?timeout=long", "bad option"),
    ("sqlite:///x.db?journal=off", "the option journal; allowed: timeout"),
    ("sqlite+aiosqlite:///x.db", "aiosqlite"),
    ("sqlite:///folder", "folder is a directory"),
    ("sqlite:///pipe", "pipe is no regular file"),
    ("sqlite:mlflow.db", "no URL of a database"),
    ("postgresql://u:p@h/x", "the Python module psycopg; .*postgresql[+]psycopg2://"),
    ("mysql://u:p@h/x", "the Python module MySQLdb; .*mysql[+]pymysql://"),
    ("mssql://u:p@h/x", "the Python module pyodbc; .*mssql[+]pymssql://"),
    ("postgresql+nosuch://u:p@h/x", "no URL of a database"),
    ("postgresql+psycopg2://u:p@h:port/x", "no URL of a database"),
    ("http://[::1", "no URL; allowed is http://HOST:PORT"),
    ("http://", "no URL"),
    ("http://h:port", "no URL"),
    ("http://u:S3cret?Pw@h", "no URL"),
    ("http://h/?api_key=S3cretPw", "put a password into MLFLOW_TRACKING_PASSWORD"),
    ("http://h/#access=S3cretPw", "put a password into MLFLOW_TRACKING_PASSWORD"),
    ("./mlruns", "is a path; MLflow keeps no runs in folders; allowed: sqlite:///FILE"),
    ("file:./mlruns", "is a path"),
    ("file:///tmp/mlruns", "is a path"),
    ("mlflow.db", "is a path"),
    ("localhost:5000", "found localhost:5000, which is a path"),
    ("u:S3cretPw@localhost:5000", "found …@localhost:5000, which is a path"),
    ("htp://host:5000", "htp:// is no kind of store; allowed: sqlite:///FILE"),
]


@pytest.mark.parametrize(("text", "why"), REFUSED)
@pytest.mark.parametrize("command", ["sync", "ui"])
def test_what_cannot_be_used_is_refused_in_one_line(
    text: str, why: str, command: str, columns: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if command == "sync":
        columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    before = sorted(Path().iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", text)
    done = CliRunner().invoke(main, [command])
    assert done.exit_code == 2
    [line] = done.output.splitlines()
    assert line.startswith("Error: MLFLOW_TRACKING_URI: found ")
    with pytest.raises(UserError, match=why) as caught:
        TrackingUri.parse(text)
    assert str(caught.value) in line
    assert "S3cret" not in line
    assert "Pw" not in line
    assert sorted(Path().iterdir()) == before


def test_all_spellings_of_a_database_are_one_store(workplace: Path) -> None:
    (workplace / "link").symlink_to(workplace)
    whole = f"{workplace}/mlflow.db"
    names = ["sqlite:///mlflow.db", "sqlite:///./mlflow.db?timeout=30", f"sqlite:///{whole}"]
    names += ["sqlite:///link/mlflow.db", "sqlite:///ml%66low.db", "sqlite+pysqlite:///mlflow.db"]
    names += ["sqlite:///file:mlflow.db?uri=true", f"sqlite:///file://{whole}?uri=1&mode=rw"]
    found = [TrackingUri.parse(name) for name in names]
    assert {uri.store for uri in found} == {TrackingUri.parse().store}
    assert {uri.database.resolve() for uri in found if uri.database} == {workplace / "mlflow.db"}
    assert TrackingUri.parse("sqlite:///other.db").store != found[0].store
    assert TrackingUri.parse(found[1].text) == found[1]
    assert found[1].text.endswith("/mlflow.db?timeout=30")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://a:s3cret@H:80/x/", "http://h/x", True),
        ("http://h", "https://h", False),
        ("http://h/x", "http://h/y", False),
        ("postgresql+psycopg2://a:s3cret@h/x", "postgresql+psycopg2://b@H/x?sslmode=require", True),
        ("postgresql+psycopg2://h/x", "postgresql+psycopg2://h/y", False),
        ("postgresql+psycopg2:///x?host=a", "postgresql+psycopg2:///x?host=b", False),
    ],
)
def test_users_and_options_make_no_other_store(one: str, other: str, same: bool) -> None:
    first, second = TrackingUri.parse(one), TrackingUri.parse(other)
    assert (first.store == second.store) == same
    assert "s3cret" not in first.store + str(first) + repr(first)


def test_options_and_odd_names_reach_mlflow(
    columns: Any, tables: Any, workplace: Path, initialised_database: Path
) -> None:
    directory = columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    assert sync(directory, "sqlite:///mlflow.db?timeout=30").runs_created == 2
    assert len(tables.query("select run_uuid from runs")) == 2
    odd = workplace / "50% of a?b#c d"
    odd.mkdir()
    shutil.copy(initialised_database, odd / "it's.db")
    from sqlalchemy.engine import URL

    uri = URL.create("sqlite", database=str(odd / "it's.db"))
    assert sync(directory, uri.render_as_string(hide_password=False)).runs_created == 2
    assert len(tables.of(odd / "it's.db").query("select run_uuid from runs")) == 2
    found = sorted(path.name for path in workplace.glob("*.db*"))
    assert found[0] == "mlflow.db"
    assert not [name for name in found if "?" in name]


def test_the_folder_of_a_new_database_is_made(workplace: Path) -> None:
    """Also where a URL would write its name in another way."""
    open_store("sqlite:///=a new & folder/mlflow.db")
    assert (workplace / "=a new & folder/mlflow.db").is_file()


def test_a_database_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smallbatch.tracking.store.CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(UserError, match=r"…@127.0.0.1:\d+/x does not answer within 0\.5 s"):
            open_store(f"postgresql+psycopg2://u:S3cretPw@127.0.0.1:{port}/x")
        assert time.monotonic() - started < 10


def test_a_slow_import_is_not_a_slow_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a busy machine, where MLflow's import takes longer than a connection may."""
    import mlflow.store.db

    name = "mlflow.store.db.utils"

    class Slowly:
        def find_spec(self, module: str, *_: object) -> None:
            if module == name:
                time.sleep(1.0)

    monkeypatch.setattr("smallbatch.tracking.store.CONNECT_S", 0.5)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(mlflow.store.db, "utils", raising=False)
    monkeypatch.setattr("sys.meta_path", [Slowly(), *sys.meta_path])
    with pytest.raises(UserError, match=r"refused$"):
        open_store("postgresql+psycopg2://u:S3cretPw@127.0.0.1:9/x")


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_what_refuses_connections_is_told_plainly(scheme: str, columns: Any) -> None:
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"…@127\.0\.0\.1:9(/x)? cannot be used: .*refused$"):
        sync(columns.root, f"{scheme}://u:S3cretPw@127.0.0.1:9{'/x' * (scheme != 'http')}")
    assert time.monotonic() - started < 20


@pytest.fixture
def echo() -> Generator[int]:
    """A server that refuses everything, and quotes what it was sent."""

    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'{{"error_code": "X", "message": "{self.path} {dict(self.headers)}"}}'.encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - the base's name

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("user", ["u:S3cretPw@", "S3cretPw@", ""])
def test_a_server_that_quotes_secrets_makes_nobody_tell_them(
    user: str, echo: int, columns: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not user:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "S3cretPw")
    columns.write(8, base_lrs=(0.5,), seeds=1, epochs=1)
    with pytest.raises(UserError, match="cannot be used: ") as caught:
        sync(columns.root, f"http://{user}127.0.0.1:{echo}")
    for secret in ("S3cret", "UzNjcmV0", "M2NyZXRQd", "Basic u", "Bearer S"):  # also in base 64
        assert secret not in str(caught.value)


def test_the_process_behind_a_mirror_has_no_secret_on_its_command_line() -> None:
    mirror = LiveMirror("http://u:S3cretPw@127.0.0.1:9")
    process: Any = mirror._process
    command = b""
    while not command:  # empty for a moment after the process has become another program
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    mirror.abort()
    assert b"live_process" in command
    assert b"S3cret" not in command
