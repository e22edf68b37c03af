"""Serves the MLflow UI for the local tracking database."""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

from smallbatch.errors import UserError
from smallbatch.tracking.store import ARTIFACTS, open_store, shown, sqlite_path, tracking_uri

HOST = "127.0.0.1"


def ui(port: int = 5000) -> NoReturn:
    """Replace this process by `mlflow server` on the local database.

    Args:
        port: The TCP port on the loopback address, as the UI has no log-in.

    Raises:
        UserError: The tracking URI is that of a server, which has its own UI, or the port is taken.
    """
    uri = tracking_uri()
    database = sqlite_path(uri)
    if database is None and uri.startswith(("http://", "https://", "databricks")):
        raise UserError(f"MLFLOW_TRACKING_URI: found {shown(uri)}, which has a UI of its own")
    if database is None:
        raise UserError(
            f"MLFLOW_TRACKING_URI: found {shown(uri)}, allowed: sqlite:///FILE, or none for "
            "mlflow.db in this folder"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(f"--port: cannot listen on {HOST}:{port} ({error})") from error
    open_store(uri)  # initialises a new database before the server's workers do so at once
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    command += ["--artifacts-destination", str(database.parent / ARTIFACTS)]
    command += ["--host", HOST, "--port", str(port), "--workers", "1"]
    # Otherwise the UI opens with its view for language models.
    print(f"http://{HOST}:{port}/#/experiments?workflowType=machine_learning")
    print("In an experiment: Model training (top left), then Runs.", flush=True)
    os.execv(sys.executable, command)  # noqa: S606 - no shell wanted
