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
PARAMS = """
dataset: {name: digits, source: digits, subset: 100, test_subset: 40}
grid: {studies: [four, five], batch_sizes: [8], base_lrs: [2^-9, 2^-7], seeds: 1}
studies:
  four: {model: resnet8, norm: none, epochs: 2, weight_decay: 0.0001}
  five: {model: resnet8, norm: batch, epochs: 2, weight_decay: 0.0001}
compute: {device: cpu}
"""

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
            ]
            for process, code in calls:
                said.append(process.communicate(timeout=120)[0])
                assert process.returncode == code, said
            (tmp_path / "params.yaml").write_text(PARAMS)
            for words in (["prepare"], ["train", "four", "8"], ["evaluate"], ["report"]):
                process = smallbatch(tmp_path, *words, **login)
                said.append(process.communicate(timeout=120)[0])
                assert process.returncode == 0, said[-1]
            assert "warning" not in said[-3]
            second = subprocess.run(
                command, env={**os.environ, **secrets, "PYTHON": sys.executable},
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            said += [second.stdout, second.stderr]
            assert second.returncode == 2
            assert second.stderr.startswith("team-server: --host 127.0.0.1 --port ")
            assert set(count(tmp_path, database).values()) == {0}
            said += dump(database)
        finally:
            server.terminate()
            server.wait(30)
        with pytest.raises(urllib.error.URLError, match="refused"):
            status(uri)
        alone = smallbatch(tmp_path, "train", "five", "8", **login)
        said.append(alone.communicate(timeout=120)[0])
        assert alone.returncode == 0
        assert said[-1].count("warning: MLflow") == 1
        command[command.index("--database") + 1] = f"127.0.0.1:{servers.free_port()}/postgres"
        lost = subprocess.run(
            command, env={**os.environ, **secrets, "PYTHON": sys.executable},
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        said.append(lost.stderr)
        assert lost.returncode == 2
        assert lost.stderr.startswith("team-server: --database: ")
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
