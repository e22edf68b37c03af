"""Runs a server of MLflow that is made of our own application and runs no code but its own."""

from __future__ import annotations

import functools
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import click

from smallbatch.errors import UserError
from smallbatch.tracking.locks import own_folder

OWN_CODE_ALONE = {
    "PYTHONSAFEPATH": "1",  # MLflow starts `python -m uvicorn`, which starts its workers
    "UVICORN_APP_DIR": os.devnull,  # else uvicorn puts the folder on the path by itself
}
"""Variables for the environment of the server; its first process needs `python -P` as well."""
UI_QUIET = "SMALLBATCH_UI_QUIET"
UI_TOKEN = "SMALLBATCH_UI_TOKEN"  # noqa: S105 - the name of a variable, which others cannot read
_LAUNCHER = "SMALLBATCH_SERVER"


def listen(host: str, port: int) -> socket.socket:
    """Have the kernel queue what asks at a port, which is this process's from here on.

    Were the port only looked at and taken again once MLflow is imported, another user of the
    machine could listen there in between, and be shown tokens and passwords.

    Returns:
        A socket that a program put in this one's place keeps.

    Raises:
        OSError: Another listens there, or it is not to be had.
        OverflowError: There is no such port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family)
    # uvicorn would set it on its connections if it had made the socket; they inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.set_inheritable(True)
    return listener


def serve(factory: str, listener: int, words: list[str], *, quiet: bool = False) -> None:
    """Become `mlflow server`, whose workers run another application.

    Args:
        factory: `module:function` that makes the application.
        listener: The descriptor of the socket of `listen`.
        words: Options of `mlflow server`.
        quiet: Leave out what MLflow tells of its settings.

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
    start = getattr(server, "_exec_cmd", None)
    if build is None or start is None:  # it must not be served without the rules of the factory
        raise UserError("this version of MLflow is not supported")

    def build_ours(*args: object, **kwargs: object) -> list[str]:
        command = [word for word in build(*args, **kwargs)[:-1] if word != "--factory"]
        return [*command, "--fd", str(listener), "--factory", factory]

    server._build_uvicorn_command = build_ours  # pyright: ignore[reportPrivateUsage]
    server._exec_cmd = functools.partial(start, pass_fds=(listener,))  # pyright: ignore[reportPrivateUsage]
    if quiet:
        click.echo = _say_nothing  # which errors are not told by
    cli(["server", *words])


def _say_nothing(*_: object, **__: object) -> None: ...


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
