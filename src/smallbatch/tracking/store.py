"""Opens the tracking store: finds its URI, initialises it once, and limits waiting."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import sqlite3
import tempfile
import warnings
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from smallbatch.tracking.project import project_folder

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlflow.tracking import MlflowClient

DEFAULT_URI = "sqlite:///mlflow.db"
ARTIFACTS = "mlartifacts"

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # By default MLflow waits for minutes for a server that cannot be reached.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD")
# Up to the last @, because SQLAlchemy accepts a password with slashes.
_USER_INFO = re.compile(r"(?<=://)[^/?\s][^?\s]*@")
_QUERY_SECRET = re.compile(r"([?&]\w*(?:password|token|secret)=)([^&\s]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Store:
    """An open tracking store.

    Attributes:
        uri: The tracking URI.
        client: MLflow's client for it.
        artifacts: The folder for artifacts of new experiments; None if the server decides.
    """

    uri: str
    client: MlflowClient
    artifacts: Path | None

    def experiment_id(self, name: str) -> str:
        """The experiment with this name, which is restored if deleted, or created."""
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = (self.artifacts / name).as_uri() if self.artifacts else None
            try:
                return self.client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = self.client.get_experiment_by_name(name)
        if found is None:
            raise RuntimeError(f"experiment {name!r} exists but cannot be read")
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id


def tracking_uri(uri: str | None = None) -> str:
    """`uri`, else MLFLOW_TRACKING_URI, else the database `mlflow.db` in the current directory."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def open_store(uri: str | None = None) -> Store:
    """Open a tracking store; an sqlite database is initialised when it is opened first.

    Raises:
        mlflow.exceptions.MlflowException: MLflow refuses the URI or the database.
    """
    uri = tracking_uri(uri)
    prepare_environment()
    with unwarned():
        database = sqlite_path(uri)
        if database is None:
            return Store(uri, _open_shared(uri), None)
        uri = f"sqlite:///{database}"  # absolute, as MLflow caches stores by URI
        with _quiet("mlflow", "alembic"):
            client = _open_sqlite(database, uri)
    return Store(uri, client, database.parent / ARTIFACTS)


def prepare_environment() -> None:
    """Set MLflow's switches (no telemetry, limited retries) unless the user has set them."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def sqlite_path(uri: str) -> Path | None:
    """Absolute path of the database in an sqlite URI; None for any other URI."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        return None
    return project_folder(Path.cwd()) / uri.removeprefix(prefix)


@contextmanager
def unwarned() -> Generator[None]:
    """Hide warnings: MLflow's are about its dependencies, or advice that does not help users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def exclusive(uri: str, purpose: str) -> Generator[None]:
    """Keep other processes of this machine from using the same store for the same purpose.

    The lock files are in the temporary directory, not beside the user's files.
    """
    name = f"{sqlite_path(uri) or uri}\n{purpose}"
    folder = Path(tempfile.gettempdir()) / f"smallbatch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shown(uri: str) -> str:
    """A tracking URI without secrets, for messages."""
    return _QUERY_SECRET.sub(r"\1…", _USER_INFO.sub("…@", uri))


def hidden(text: str, uri: str) -> str:
    """The first line of a message, without secrets of a tracking URI that it may quote."""
    found = _USER_INFO.search(uri)
    told = [found[0][:-1].partition(":")[2]] if found else []
    told += [secret for _, secret in _QUERY_SECRET.findall(uri)]
    secrets = {*told, *map(unquote, told), *(os.environ.get(name, "") for name in _SECRETS)}
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, "…")
    return text.strip().partition("\n")[0][:300]


def _open_shared(uri: str) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    if uri.startswith(("http://", "https://")):
        return MlflowClient(uri, registry_uri=uri)
    # Only one process can create the tables; others that try at the same time fail. The first
    # tables are created together with the client.
    with exclusive(uri, "initialise"):
        client = MlflowClient(uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _open_sqlite(database: Path, uri: str) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    if _is_initialised(database):
        return MlflowClient(uri, registry_uri=uri)
    # Processes that open a new database at the same time fail with "table already exists".
    with exclusive(uri, "initialise"):
        if not database.exists():
            _create_sqlite(database)
        client = MlflowClient(uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        connection = sqlite3.connect(database, timeout=5)
        # Halves the time of a write. The setting stays in the file and so marks it as initialised.
        # It fails while another program uses the database; writes are then slower.
        with closing(connection), suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
    return client


def _create_sqlite(database: Path) -> None:
    """Create the tables in a temporary file, as an incomplete database could not be opened."""
    from mlflow.tracking import MlflowClient

    aside = database.with_name(f".{database.name}.new")
    for path in (aside, Path(f"{aside}-journal")):
        path.unlink(missing_ok=True)
    uri = f"sqlite:///{aside}"
    MlflowClient(uri, registry_uri=uri).search_experiments(max_results=1)
    aside.replace(database)


def _is_initialised(database: Path) -> bool:
    if not database.exists():
        return False
    with closing(sqlite3.connect(database, timeout=5)) as connection:
        try:
            return connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        except sqlite3.DatabaseError:  # MLflow gives a better message
            return False


@contextmanager
def _quiet(*names: str) -> Generator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
