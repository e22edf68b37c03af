"""The server of docs/team-server.md: PostgreSQL, logins, hosts, and no secret told."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from benchmarks.faults import servers
from benchmarks.faults.database import count

from tests.tracking.planted import plant

ROOT = Path(__file__).parents[2]
CANARY = "canary-4711-canary"
PARAMS = """
dataset: {name: digits, source: digits, subset: 100, test_subset: 40}
grid: {studies: [four, five], batch_sizes: [8], base_lrs: [2^-9], seeds: 1}
studies:
  four: {model: resnet8, norm: none, epochs: 2, weight_decay: 0.0001}
  five: {model: resnet8, norm: batch, epochs: 2, weight_decay: 0.0001}
compute: {device: cpu}
"""
PIPELINE = """
from smallbatch.cli.main import main
for words in (["prepare"], ["train", "four", "8"], ["evaluate"], ["report"]):
    main(words, standalone_mode=False)
    if words[0] == "train":
        print("trained", flush=True)
"""
"""Four commands in one process: most of their time goes to imports."""

pytestmark = pytest.mark.slow


def answer(
    url: str, body: object = None, *, host: str | None = None, login: str | None = None
) -> tuple[int, Any]:
    """The status and the content that a server answers with."""
    headers = {"Content-Type": "application/json"}
    if host:
        headers["Host"] = host
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as found:
            code, text = found.status, found.read()
    except urllib.error.HTTPError as error:
        code, text = error.code, error.read()
    try:
        return code, json.loads(text)
    except ValueError:
        return code, text.decode()


def status(uri: str, host: str | None = None, login: str | None = None) -> int:
    url = f"{uri}/api/2.0/mlflow/experiments/search"
    return answer(url, {"max_results": 5}, host=host, login=login)[0]


def check_locations(uri: str, folder: Path) -> None:
    """Whoever is logged in writes to the server's folder of artifacts, and nowhere else."""
    api, admin, bob = f"{uri}/api/2.0/mlflow", f"admin:{CANARY}", "bob:a password of bob"
    name, password = bob.split(":")
    user = {"username": name, "password": password}
    assert answer(f"{api}/users/create", user, login=admin)[0] == 200
    outside = folder / "outside"
    places = [outside.as_uri(), str(outside), "s3://x/y", "mlflow-artifacts:/../x"]
    places += ["mlflow-artifacts://evil.example/x", "http://evil.example/x", "dbfs:/x"]
    words = [("artifact_location", place) for place in places]  # and the other spelling
    for word, place in [*words, ("artifactLocation", places[0]), ("artifactLocation", "outside")]:
        asked = {"name": place.replace("/", "_"), word: place}
        code, told = answer(f"{api}/experiments/create", asked, login=bob)
        assert (code, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE"), place
    assert answer(f"{api}/registered-models/create", {"name": "m"}, login=bob)[0] == 200
    for place in places:
        version = {"name": "m", "source": place}
        assert answer(f"{api}/model-versions/create", version, login=bob)[0] == 400, place
    code, made = answer(f"{api}/experiments/create", {"name": "own"}, login=bob)
    assert code == 200
    code, run = answer(f"{api}/runs/create", made, login=bob)
    assert run["run"]["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
    assert not outside.exists()


def check_routes(uri: str) -> None:
    """MLflow's other services, which do as the server's user, are there for nobody."""
    api = f"{uri}/ajax-api/3.0/mlflow"
    for login in (f"admin:{CANARY}", "bob:a password of bob", None):
        assert answer(f"{api}/assistant/config", login=login)[0] == 404
        assert answer(f"{api}/assistant/message", {"message": "hi"}, login=login)[0] == 404
        assert answer(f"{uri}/api/3.0/mlflow/gateway/secrets/create", {}, login=login)[0] == 404
        assert answer(f"{uri}/ajax-api/3.0/jobs/search", {}, login=login)[0] == 404
        assert answer(f"{uri}/api/2.0/mlflow/webhooks", login=login)[0] == 404


def check_bodies(port: int) -> None:
    """A long body is refused before it is read: these are announced, and never sent."""
    longest, longer = 2**25, 2**25 + 1
    known = base64.b64encode(f"admin:{CANARY}".encode()).decode()
    wrong = base64.b64encode(b"admin:password").decode()
    for login, length, code in (
        ("", longest, b"401"),
        (f"Authorization: Basic {wrong}\r\n", longest, b"401"),
        (f"Authorization: Basic {known}\r\n", longer, b"413"),
    ):
        for path in ("/graphql", "/health", "/api/2.0/mlflow/runs/create", "/signup"):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as asked:
                head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{login}"
                asked.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
                assert asked.recv(12) == b"HTTP/1.1 " + code
    uri, text = f"http://127.0.0.1:{port}/api/2.0", "x" * 2**20  # longer than is read unasked
    experiment = {"name": "long", "tags": [{"key": "mlflow.note.content", "value": text}]}
    code, told = answer(f"{uri}/mlflow/experiments/create", experiment, login=f"admin:{CANARY}")
    assert (code, told["error_code"]) == (400, "INVALID_PARAMETER_VALUE")  # it was read


def check_killed(server: subprocess.Popen[bytes], uri: str, host: str) -> None:
    """A server that is killed takes its workers with it."""
    deadline = time.monotonic() + 90
    while True:
        try:
            assert answer(f"{uri}/health", host=host)[0] == 200
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    server.kill()
    server.wait()
    deadline = time.monotonic() + 30
    while True:
        try:
            answer(f"{uri}/health", host=host)
        except OSError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.2)


def smallbatch(
    folder: Path, *words: str, program: str = "", **environment: str
) -> subprocess.Popen[str]:
    what = ["-c", program] if program else ["-m", "smallbatch", *words]
    return subprocess.Popen(
        [sys.executable, "-P", *what],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.skipif(servers.why_no_postgres() is not None, reason=str(servers.why_no_postgres()))
def test_a_team_shares_a_server_and_its_secrets_stay_secret(tmp_path: Path, columns: Any) -> None:
    for study in ("one", "two"):  # few runs: a server with logins hashes a password per request
        columns.write(8, study=study, base_lrs=(2.0**-6,), seeds=1, epochs=2)
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
        assert "PGPASSWORD is not set in the environment" in without.stderr
        (tmp_path / "tmp").mkdir()
        environment = {**os.environ, **secrets, "PYTHON": sys.executable}
        environment["TMPDIR"] = str(tmp_path / "tmp")
        planted = plant(folder := tmp_path / "planted")
        with (tmp_path / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=folder
            )  # fmt: skip
        try:
            uri = f"http://127.0.0.1:{port}"
            servers.wait_for(f"{uri}/health", 240)
            other = [*command[:-3], str(servers.free_port()), *command[-2:]]
            with (tmp_path / "other.log").open("wb") as log:
                doomed = subprocess.Popen(other, env=environment, stdout=log, stderr=log)
            assert not planted.exists()
            assert CANARY.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert status(uri) == 401
            assert status(uri, login=f"admin:{CANARY[1:]}") == 401
            assert status(uri, host="evil.example", login=f"admin:{CANARY}") == 403
            assert status(uri, login=f"admin:{CANARY}") == 200
            assert answer(f"{uri}/health", host="evil.example")[0] == 403
            check_locations(uri, tmp_path)
            check_routes(uri)
            check_bodies(port)
            # MLflow's files with known names lie where no other user can plant a link.
            assert not [
                it for it in (tmp_path / "tmp").iterdir() if re.search("lock|mlflow", it.name)
            ]
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
            pipeline = smallbatch(tmp_path, program=PIPELINE, **login)
            said.append(pipeline.communicate(timeout=240)[0])
            assert pipeline.returncode == 0, said[-1]
            trained, seen, _ = said[-1].partition("trained\n")
            assert seen
            assert "warning" not in trained
            second = subprocess.run(
                command, env={**os.environ, **secrets, "PYTHON": sys.executable},
                capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            said += [second.stdout, second.stderr]
            assert second.returncode == 2
            assert second.stderr.startswith("team-server: --host 127.0.0.1 --port ")
            check_killed(doomed, f"http://127.0.0.1:{other[-3]}", f"127.0.0.1:{port}")
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
    logs = ("server.log", "other.log", "postgres.log")
    said += [(tmp_path / name).read_text() for name in logs]
    said += [path.read_text() for path in (tmp_path / "tmp").rglob("*") if path.is_file()]
    assert len(said) > 17
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
