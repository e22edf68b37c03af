"""Serves the MLflow UI for the local tracking database."""

from __future__ import annotations

import os
import secrets
import sys
from typing import NoReturn

from smallbatch.errors import UserError
from smallbatch.tracking.serving import OWN_CODE_ALONE, UI_TOKEN, listen
from smallbatch.tracking.store import ARTIFACTS, open_store, plain_errors
from smallbatch.tracking.uri import TrackingUri

HOST = "127.0.0.1"


def ui(port: int = 5000) -> NoReturn:
    """Replace this process by a server of MLflow on the local database.

    It prints a link with a token, new at each start, without which nobody is answered: other users
    of this machine reach its loopback address as well.

    Args:
        port: The TCP port on the loopback address.

    Raises:
        UserError: The tracking URI is that of a server, which has its own UI, or of no database
            that can be used, or the port is taken.
    """
    uri = TrackingUri.parse()
    database = uri.database
    if database is None:
        has = "has a UI of its own" if uri.kind == "server" else "needs `mlflow server`"
        raise UserError(f"MLFLOW_TRACKING_URI: found {uri}, which {has}; allowed is sqlite:///FILE")
    try:
        listener = listen(HOST, port)
    except OSError as error:
        raise UserError(f"--port: cannot listen on {HOST}:{port} ({error})") from error
    with listener:
        with plain_errors(uri):
            open_store(uri)  # initialises a new database before the server's workers do so at once
        command = [sys.executable, "-P", "-m", "smallbatch.tracking.ui_app", str(listener.fileno())]
        command += ["--backend-store-uri", uri.text]
        command += ["--artifacts-destination", str(database.parent / ARTIFACTS)]
        command += ["--host", HOST, "--port", str(port), "--workers", "1"]
        command += ["--allowed-hosts", f"{HOST},{HOST}:*,localhost,localhost:*"]
        command += ["--uvicorn-opts", "--no-access-log"]  # the link is a request
        token = secrets.token_urlsafe(32)
        # Otherwise the UI opens with its view for language models.
        print(f"http://{HOST}:{port}/?token={token}#/experiments?workflowType=machine_learning")
        print("In an experiment: Model training (top left), then Runs.", flush=True)
        os.environ |= {**OWN_CODE_ALONE, UI_TOKEN: token}
        os.execv(sys.executable, command)  # noqa: S606 - no shell wanted
