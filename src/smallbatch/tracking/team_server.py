"""An MLflow server for a team: PostgreSQL, a folder of artifacts, logins. See docs/team-server.md.

Secrets come from the environment alone, stand on no command line and are written to no file:
PGPASSWORD, of the database's user; MLFLOW_ADMIN_PASSWORD, of MLflow's user `admin`, at least 12
characters; MLFLOW_FLASK_SERVER_SECRET_KEY, a long random text that signs sessions.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from smallbatch.errors import UserError
from smallbatch.redact import redact
from smallbatch.tracking import team_app
from smallbatch.tracking.serving import listen, serve

_SECRETS = ("PGPASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
_LEAST = 12  # characters of a password
_CONNECT_S = 10


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _die(message)


def main() -> None:
    """Check what is given, then become the server."""
    os.umask(0o077)
    asked = _asked()
    for name in _SECRETS:
        if not os.environ.get(name):
            _die(f"{name} is not set in the environment")
    password = os.environ.pop("MLFLOW_ADMIN_PASSWORD")
    if len(password) < _LEAST:
        _die(f"MLFLOW_ADMIN_PASSWORD: shorter than {_LEAST} characters")
    database: str = f"{asked.user}@{asked.database}"
    if any(sign.isspace() for sign in database) or database.count("@") != 1:
        _die("--database, --user: no blanks, no @")
    artifacts = Path(asked.artifacts).absolute()
    artifacts.mkdir(parents=True, exist_ok=True)
    # MLflow would try for an hour to reach the database.
    _check_database(f"postgresql://{database}?connect_timeout={_CONNECT_S}")
    listener = _listen(asked.host, asked.port)
    _serve(asked, listener, f"postgresql+psycopg2://{database}", artifacts.resolve(), password)


def _asked() -> argparse.Namespace:
    parser = _Parser("team-server", allow_abbrev=False, description="An MLflow server for a team.")
    parser.add_argument("--database", required=True, metavar="HOST:PORT/NAME")
    parser.add_argument("--user", required=True, help="of the database")
    parser.add_argument("--artifacts", required=True, metavar="FOLDER")
    parser.add_argument("--allowed-hosts", required=True, metavar="NAME[,NAME…]")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", default="5000")
    return parser.parse_args()


def _die(why: str) -> NoReturn:
    print(f"team-server: {redact(why)}", file=sys.stderr)
    sys.exit(2)


def _check_database(uri: str) -> None:
    import psycopg2

    try:
        psycopg2.connect(uri).close()
    except psycopg2.Error as error:
        _die(f"--database: {str(error).strip().partition(chr(10))[0]}")


def _listen(host: str, port: str) -> int:
    try:
        return listen(host, int(port)).detach()
    except (OSError, ValueError, OverflowError) as error:
        _die(f"--host {host} --port {port}: {error}")


def _serve(
    asked: argparse.Namespace, listener: int, uri: str, artifacts: Path, password: str
) -> None:
    # MLflow reads some of its login settings from a file alone. This one lies in memory, holds no
    # secret, and is gone with this process.
    settings = os.memfd_create("auth.ini")
    text = f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = {uri.replace('%', '%%')}\n"
    os.write(settings, text.encode())
    os.environ |= {
        "MLFLOW_AUTH_CONFIG_PATH": f"/proc/{os.getpid()}/fd/{settings}",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        team_app.ARTIFACTS: str(artifacts),
    }
    from mlflow.environment_variables import MLFLOW_AUTH_ADMIN_PASSWORD

    # An older MLflow takes the password from a file alone.
    if not MLFLOW_AUTH_ADMIN_PASSWORD.is_set():
        _die("this version of MLflow is not supported")
    words = ["--app-name", "basic-auth", "--host", asked.host, "--port", asked.port]
    words += ["--allowed-hosts", asked.allowed_hosts, "--backend-store-uri", uri]
    words += ["--artifacts-destination", str(artifacts), "--workers", "2"]
    try:
        serve(f"{team_app.__name__}:create_app", listener, words)
    except UserError as error:
        _die(str(error))


if __name__ == "__main__":
    main()
