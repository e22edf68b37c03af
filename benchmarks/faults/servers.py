"""Servers for tests: MLflow's, Debian's PostgreSQL, and one that fails at everything."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.faults import processes


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """A real `mlflow server` on loopback, in a process group of its own."""

    def __init__(self, folder: Path, backend: str, port: int, options: Sequence[str] = ()) -> None:
        self.uri = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--workers", "1"]
        command += ["--artifacts-destination", str(folder / "artifacts"), *options]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment["MLFLOW_BACKEND_STORE_URI"] = backend  # its password is on no command line
        with (folder / f"server-{port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        wait_for(f"{self.uri}/health")

    def signal(self, number: int) -> None:
        """Send a signal to the server and its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def mlflow_server(folder: Path) -> Generator[MlflowServer]:
    """A server on the folder's `mlflow.db`; killed at the end."""
    server = MlflowServer(folder, f"sqlite:///{folder / 'mlflow.db'}", free_port())
    try:
        yield server
    finally:
        server.kill()


def wait_for(url: str, seconds: float = 90) -> None:
    """Wait until a server answers.

    Raises:
        OSError: it does not.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own server
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@contextmanager
def failing_server() -> Generator[str]:
    """Answers everything with status 500."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        connection.sendall(
                            b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                        )

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


class _Late(BaseHTTPRequestHandler):
    """Passes requests on at once, but holds back the answers to those that create a run."""

    target = ""
    seconds = 0.0

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
        request = urllib.request.Request(  # noqa: S310 - our own server
            self.target + self.path, body or None, kind, method=self.command
        )
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        if self.path.endswith("/runs/create"):
            time.sleep(self.seconds)
        with suppress(OSError):  # nobody waits any more
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815 - the base's names


@contextmanager
def late(folder: Path, uri: str, seconds: float) -> Generator[str]:
    """A proxy of a server in a process of its own, for which creating a run takes so long."""
    port = free_port()

    def serve() -> None:
        handler = type("Late", (_Late,), {"target": uri, "seconds": seconds})
        ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()

    pid = processes.start(folder, serve)
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.kill(pid, signal.SIGKILL)
        processes.end(pid)


def postgres_programs() -> Path | None:
    """Where Debian keeps the newest PostgreSQL's programs; None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    return found[-1].parent if found else None


def why_no_postgres() -> str | None:
    """Why no PostgreSQL server can be started here; None where one can."""
    if postgres_programs() is None:
        return "needs PostgreSQL (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and not _has_user("postgres"):
        return "needs the user postgres: PostgreSQL does not run as root"
    try:
        import psycopg2
    except ImportError:
        return "needs psycopg2 (pip install smallbatch[server])"
    _ = psycopg2
    return None


@contextmanager
def postgres(folder: Path) -> Generator[str]:
    """A fresh PostgreSQL server on loopback, not run as root; yields SQLAlchemy's URI."""
    programs = postgres_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed")
    # A short path of its own: the server's user must reach it, whatever the folder's parents say.
    home = Path("/tmp") / f"smallbatch-postgres-{secrets.token_hex(4)}"  # noqa: S108 - its name is random
    home.mkdir(mode=0o700)
    password, port = secrets.token_hex(16), free_port()
    (home / "password").write_text(password)
    as_user: list[str] = []
    if os.geteuid() == 0:
        for path in (home, home / "password"):
            shutil.chown(path, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]
    data = str(home / "data")
    try:
        _run([*as_user, str(programs / "initdb"), "-D", data, "-U", "mlflow", "-A", "scram-sha-256",
              "--pwfile", str(home / "password"), "-E", "UTF8", "--no-sync"], home)  # fmt: skip
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={home}"
        control = [*as_user, str(programs / "pg_ctl"), "-D", data, "-w"]
        options += " -c max_connections=200"
        _run([*control, "-l", str(home / "log"), "-o", options, "start"], home)
        try:
            yield f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"], home)
    finally:
        if (home / "log").exists():
            shutil.copy(home / "log", folder / "postgres.log")
        shutil.rmtree(home, ignore_errors=True)


def _run(command: list[str], home: Path) -> None:
    done = subprocess.run(
        command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{command[-1]}: {done.stderr.decode()[-1000:]}")


def _version(path: Path) -> float:
    try:
        return float(path.parts[-3])
    except ValueError:
        return 0.0


def _has_user(name: str) -> bool:
    with suppress(KeyError):
        pwd.getpwnam(name)
        return True
    return False
