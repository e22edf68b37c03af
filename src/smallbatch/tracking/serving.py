"""Runs a server of MLflow that is made of our own application and runs no code but its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

from smallbatch.errors import UserError
from smallbatch.tracking.locks import own_folder

OWN_CODE_ALONE = {
    "PYTHONSAFEPATH": "1",  # MLflow starts `python -m uvicorn`, which starts its workers
    "UVICORN_APP_DIR": os.devnull,  # else uvicorn puts the folder on the path by itself
}
"""Variables for the environment of the server; its first process needs `python -P` as well."""
UI_TOKEN = "SMALLBATCH_UI_TOKEN"  # noqa: S105 - the name of a variable, which others cannot read
_LAUNCHER = "SMALLBATCH_SERVER"


def serve(factory: str, words: list[str]) -> None:
    """Become `mlflow server`, whose workers run another application.

    Args:
        factory: `module:function` that makes the application.
        words: Options of `mlflow server`.

    Raises:
        UserError: This version of MLflow is not supported, or there is no private folder.
    """
    os.environ |= {
        **OWN_CODE_ALONE,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "TMPDIR": str(own_folder()),  # MLflow writes files with known names there
        _LAUNCHER: str(os.getpid()),
    }
    os.environ.pop("MLFLOW_GUNICORN_OPTS", None)  # would start another server than uvicorn
    from mlflow import server
    from mlflow.cli import cli

    build = getattr(server, "_build_uvicorn_command", None)
    if build is None:  # MLflow must not be served without the rules of the factory
        raise UserError("this version of MLflow is not supported")

    def build_ours(*args: object, **kwargs: object) -> list[str]:
        command = [word for word in build(*args, **kwargs)[:-1] if word != "--factory"]
        return [*command, "--factory", factory]

    server._build_uvicorn_command = build_ours  # pyright: ignore[reportPrivateUsage]
    cli(["server", *words])


def end_with_launcher() -> None:
    """Have this worker's server end once the process that became it is gone, even if killed."""
    threading.Thread(target=_end_with, args=(int(os.environ[_LAUNCHER]),), daemon=True).start()


def _end_with(launcher: int) -> None:
    import psutil

    supervisor = os.getppid()
    with suppress(psutil.NoSuchProcess):
        started_it = psutil.Process(launcher)
        while os.getppid() == supervisor and started_it.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    # Once the supervisor is gone, who has its place is not ours to end.
    command = Path(f"/proc/{supervisor}/cmdline")
    if os.getppid() == supervisor and b"uvicorn" in command.read_bytes():
        os.kill(supervisor, signal.SIGTERM)
        time.sleep(5)
    os._exit(1)
