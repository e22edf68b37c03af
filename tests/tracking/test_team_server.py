"""The server of docs/team-server.md: PostgreSQL, logins, hosts, and no secret told."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from benchmarks.faults import servers
from benchmarks.faults.database import count

ROOT = Path(__file__).parents[2]
CANARY = "canary-4711-canary"

pytestmark = pytest.mark.slow


def status(uri: str, host: str | None = None, login: str | None = None) -> int:
    headers = {"Content-Type": "application/json"}
    if host:
        headers["Host"] = host
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    url = f"{uri}/api/2.0/mlflow/experiments/search"
    request = urllib.request.Request(url, data=b'{"max_results": 5}', headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def smallbatch(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "smallbatch", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.skipif(servers.why_no_postgres() is not None, reason=str(servers.why_no_postgres()))
def test_a_team_shares_a_server_and_its_secrets_stay_secret(tmp_path: Path, columns: Any) -> None:
    for study in ("one", "two"):  # few runs: a server with logins hashes a password per request
        columns.write(8, study=study, seeds=1, epochs=2, diverged=(2.0**-3,))
    said: list[str] = []
    with servers.postgres(tmp_path) as database:
        url = sqlalchemy.make_url(database)
        port = servers.free_port()
        command = [str(ROOT / "bin/team-server"), "--database", f"127.0.0.1:{url.port}/postgres"]
        command += ["--user", "mlflow", "--artifacts", str(tmp_path / "artifacts")]
        command += ["--port", str(port), "--allowed-hosts", f"127.0.0.1:{port}"]
        secrets = {
            "PGPASSWORD": str(url.password),
            "MLFLOW_ADMIN_PASSWORD": CANARY,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": CANARY + "-key",
        }
        without = subprocess.run(command, env=os.environ, capture_output=True, text=True)
        assert without.returncode == 2
        assert "PGPASSWORD: not set in the environment" in without.stderr
        with (tmp_path / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command, env={**os.environ, **secrets, "PYTHON": sys.executable},
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            uri = f"http://127.0.0.1:{port}"
            servers.wait_for(f"{uri}/health")
            assert CANARY.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert status(uri) == 401
            assert status(uri, login=f"admin:{CANARY[1:]}") == 401
            assert status(uri, host="evil.example", login=f"admin:{CANARY}") == 403
            assert status(uri, login=f"admin:{CANARY}") == 200
            login = {
                "MLFLOW_TRACKING_URI": uri,
                "MLFLOW_TRACKING_USERNAME": "admin",
                "MLFLOW_TRACKING_PASSWORD": CANARY,
            }
            with_password = uri.replace("://", f"://admin:{CANARY}@").replace(str(port), "9")
            wrong = {**login, "MLFLOW_TRACKING_USERNAME": "no"}
            calls = [  # all at once
                (smallbatch(tmp_path, "sync", "models/digits/one", **login), 0),
                (smallbatch(tmp_path, "sync", "models/digits/two", **login), 0),
                (smallbatch(tmp_path, "sync", **wrong), 2),
                (smallbatch(tmp_path, "sync", MLFLOW_TRACKING_URI=with_password), 2),
                (smallbatch(tmp_path, "evaluate", **login), 0),
            ]
            for process, code in calls:
                said.append(process.communicate(timeout=120)[0])
                assert process.returncode == code, said
            said.append(smallbatch(tmp_path, "report", **login).communicate(timeout=120)[0])
            assert set(count(tmp_path, database).values()) == {0}
            said += dump(database)
        finally:
            server.terminate()
            server.wait(30)
    said += [path.read_text(errors="replace") for path in (tmp_path / "reports").rglob("*.*")]
    said += [(tmp_path / name).read_text() for name in ("server.log", "postgres.log")]
    assert len(said) > 20
    assert not [text for text in said if CANARY in text or str(url.password) in text]


def dump(database: str) -> list[str]:
    """Every row of every table but that of the users, whose passwords are hashed."""
    engine = sqlalchemy.create_engine(database)
    with engine.connect() as connection:
        names = [name for name in sqlalchemy.inspect(engine).get_table_names() if name != "users"]
        rows = [
            str(connection.execute(sqlalchemy.text(f'select * from "{n}"')).all()) for n in names
        ]
        users = str(connection.execute(sqlalchemy.text("select * from users")).all())
    engine.dispose()
    return [*rows, users]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql://u:p%40ss@host/db", "postgresql://…@host/db"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:///a@b.db", "sqlite:///a@b.db"),
    ],
)
def test_messages_show_no_password(uri: str, told: str) -> None:
    from smallbatch.tracking.store import hidden, shown

    assert shown(uri) == told
    assert "p@ss" not in hidden("cannot log in with p@ss or p%40ss", uri) or "p%40" not in uri
