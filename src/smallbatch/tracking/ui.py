"""Serves the MLflow UI for the local tracking database."""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from smallbatch import durable
from smallbatch.errors import UserError
from smallbatch.tracking import entries
from smallbatch.tracking.experiment import prepare_view, runs_page
from smallbatch.tracking.locks import own_folder
from smallbatch.tracking.serving import OWN_CODE_ALONE, UI_QUIET, UI_TOKEN, listen
from smallbatch.tracking.store import ARTIFACTS, open_store, plain_errors
from smallbatch.tracking.uri import TrackingUri

if TYPE_CHECKING:
    from mlflow.entities import Experiment

    from smallbatch.tracking.store import Store

HOST = "127.0.0.1"
_QUIET = {UI_QUIET: "1", "PYTHONWARNINGS": "ignore", "MLFLOW_LOGGING_LEVEL": "ERROR"}


def ui(
    port: int = 5000,
    *,
    first: str | None = None,
    open_browser: bool = False,
    verbose: bool = False,
) -> NoReturn:
    """Replace this process by a server of MLflow on the local database.

    It prints a link with a token, new at each start, without which nobody is answered: other users
    of this machine reach its loopback address as well. The link leads to a table of runs.

    Args:
        port: The TCP port on the loopback address.
        first: The name of the experiment to show, if it has runs; else the newest that has.
        open_browser: Open the link in a browser.
        verbose: Show what the server itself says, not its errors alone.

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
            # Initialises a new database before the server's workers do so at once.
            page = _page(open_store(uri), first)
        command = [sys.executable, "-P", "-m", "smallbatch.tracking.ui_app", str(listener.fileno())]
        command += ["--backend-store-uri", uri.text]
        command += ["--artifacts-destination", str(database.parent / ARTIFACTS)]
        command += ["--host", HOST, "--port", str(port), "--workers", "1"]
        command += ["--allowed-hosts", f"{HOST},{HOST}:*,localhost,localhost:*"]
        level = "" if verbose else " --log-level error"
        command += ["--uvicorn-opts", f"--no-access-log{level}"]  # the link is a request
        token = secrets.token_urlsafe(32)
        link = f"http://{HOST}:{port}/?token={token}{page}"
        print(link, flush=True)
        if open_browser:
            _open(link)
        os.environ |= {**OWN_CODE_ALONE, UI_TOKEN: token, **({} if verbose else _QUIET)}
        os.execv(sys.executable, command)  # noqa: S606 - no shell wanted


def has_browser() -> bool:
    """Whether a browser with windows can be opened here."""
    import webbrowser

    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return False
    with suppress(webbrowser.Error):
        return bool(webbrowser.get())
    return False


def _page(store: Store, first: str | None) -> str:
    experiment = _experiment(store, first)
    if experiment is not None:
        return runs_page(prepare_view(store, experiment))
    print("no runs yet: train, or log the results with `smallbatch sync`", file=sys.stderr)
    return "#/experiments?workflowType=machine_learning"


def _experiment(store: Store, first: str | None) -> Experiment | None:
    """The experiment of this name if it has runs of ours, else that of the newest run."""
    filters = f"tags.`{entries.COLUMN}` LIKE '%'"
    named = store.client.get_experiment_by_name(first) if first else None
    active = [it.experiment_id for it in store.client.search_experiments()]
    for ids in ([named.experiment_id] if named else [], active):
        wanted = [it for it in ids if it in active]
        runs = store.client.search_runs(
            wanted, filters, max_results=1, order_by=["attributes.start_time DESC"]
        ) if wanted else []  # fmt: skip
        if runs:
            return store.client.get_experiment(runs[0].info.experiment_id)
    return None


def _open(link: str) -> None:
    """Open a link in a browser, by a file that leads to it: others see a process's arguments."""
    import webbrowser

    page = own_folder() / "ui.html"
    text = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={link}">\n'
    durable.write(page, text.encode(), mode=0o600)
    with suppress(webbrowser.Error):
        webbrowser.open(page.as_uri())
