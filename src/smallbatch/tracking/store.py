"""Opens the tracking store: initialises it once, and limits waiting."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sqlite3
import threading
import warnings
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.errors import UserError
from smallbatch.private import mode_for_writers
from smallbatch.redact import redact
from smallbatch.tracking import anchor, trust
from smallbatch.tracking.locks import exclusive
from smallbatch.tracking.uri import VARIABLE, TrackingUri

if TYPE_CHECKING:
    from collections.abc import Generator

    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

ARTIFACTS = "mlartifacts"
CONNECT_S = 8.0
"""Most seconds to wait for a connection; MLflow alone would try for minutes."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # By default MLflow waits for minutes for a server that cannot be reached.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
# Else a model gets the `uv.lock`, `pyproject.toml` and `.python-version` of the working folder, by
# links there any file of this user.
_FORCED = {"MLFLOW_LOG_UV_FILES": "false", "MLFLOW_UV_AUTO_DETECT": "false"}


@dataclass(frozen=True)
class Store:
    """An open tracking store.

    Attributes:
        uri: The tracking URI.
        client: MLflow's client for it.
        artifacts: The folder for artifacts of new experiments; None if the server decides.
    """

    uri: TrackingUri
    client: MlflowClient
    artifacts: Path | None

    def experiment_id(self, name: str) -> str:
        """The experiment with this name, which is restored if deleted, or created.

        Raises:
            UserError: A local store keeps its artifacts elsewhere than beside the database, or a
                server on this machine or another host.
        """
        from mlflow.exceptions import MlflowException

        if self.artifacts:
            trust.check_folders(self.artifacts, self.artifacts / name)
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = (self.artifacts / name).as_uri() if self.artifacts else None
            try:
                self.client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self.client.get_experiment_by_name(name)
        if found is None:
            raise RuntimeError(f"experiment {name!r} exists but cannot be read")
        self._check(name, found.artifact_location)
        if found.lifecycle_stage != "active":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def log_model_files(self, experiment: str, model: LoggedModel, folder: Path) -> None:
        """Copy what is in a folder to where a model of an experiment has its artifacts.

        Raises:
            UserError: In a local store, that is elsewhere than beside the database; of a server,
                on this machine or another host.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
        from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

        if self.uri.kind not in ("sqlite", "server"):
            self.client.log_model_artifacts(model.model_id, str(folder))
            return
        location = model.artifact_location
        self._check(experiment, location)
        # Not by the client, which would ask the store once more where to write.
        place = (
            LocalArtifactRepository(location)
            if self.artifacts
            else get_artifact_repository(location, tracking_uri=self.uri.text)
        )
        place.log_artifacts(str(folder))

    def _check(self, experiment: str, location: str) -> None:
        """Refuse what a local database says unless it is the folder that `experiment_id` gives.

        Of what a server says, a folder of this machine and a host that is not its own are refused.
        """
        if self.uri.kind == "server" and not trust.is_remote(location, self.uri.text):
            raise UserError(
                f"{VARIABLE}: {self.uri} has the artifacts of experiment {experiment} at "
                f"{redact(location)[:200]!r}, neither that server nor a bucket; start it with "
                f"--serve-artifacts, rename the experiment, or allow its scheme by {trust.ALLOWED}"
            )
        if self.artifacts is None:
            return
        folder = self.artifacts / experiment
        if not trust.is_inside(location, folder):
            raise UserError(
                f"{VARIABLE}: {self.uri} has the artifacts of experiment {experiment} at "
                f"{redact(location)[:200]!r}, and they are written to {folder} alone; rename "
                "that experiment"
            )
        trust.check_folders(self.artifacts, trust.local_path(location))


def open_store(uri: TrackingUri | str | None = None) -> Store:
    """Open a tracking store; a database is initialised when it is opened first.

    Raises:
        UserError: The URI cannot be used, its database does not answer, or another process has it.
        mlflow.exceptions.MlflowException: MLflow refuses the URI or the database.
    """
    uri = uri if isinstance(uri, TrackingUri) else TrackingUri.parse(uri)
    prepare_environment()
    with unwarned(), _quiet("mlflow", "alembic"):
        if uri.database is not None:
            artifacts = uri.database.parent / ARTIFACTS
            trust.check_database(uri.database)
            trust.check_folders(artifacts, artifacts)
            return Store(uri, _open_sqlite(uri, uri.database, artifacts), artifacts)
        _reach(uri)
        if uri.kind == "database":
            # Only one process can create the tables; others that try at the same time fail. The
            # first tables are created together with the client.
            with exclusive(uri, "initialise"):
                return Store(uri, _client(uri.text), None)
        from mlflow.tracking import MlflowClient

        return Store(uri, MlflowClient(uri.text, registry_uri=uri.text), None)


def may_be_new(uri: TrackingUri) -> bool:
    """Whether opening the store may create tables first, which takes a while."""
    if uri.database is None:
        return uri.kind == "database"  # only a connection could tell
    return not uri.database.exists()


def prepare_environment() -> None:
    """Set MLflow's switches (no telemetry, limited retries) unless the user has set them.

    Those of `_FORCED` are set in any case.
    """
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ.update(_FORCED)


@contextmanager
def unwarned() -> Generator[None]:
    """Hide warnings: MLflow's are about its dependencies, or advice that does not help users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def plain_errors(uri: TrackingUri) -> Generator[None]:
    """Turn what MLflow, its databases and its uploads raise into one line of a UserError."""
    try:
        with unwarned():
            import mlflow.exceptions as mlflow_exceptions
            import sqlalchemy.exc as database_exceptions
    except ImportError as error:
        raise UserError(f"mlflow cannot be imported ({error}); install it to sync") from error
    try:
        # It warns of what it then fails for.
        with (
            _quiet("mlflow.utils.databricks_utils", level=logging.ERROR),
            _quiet("mlflow.store.db.utils", level=logging.CRITICAL),  # with a traceback
        ):
            yield
    # Artifact uploads raise errors of requests, which are OSErrors.
    except (
        mlflow_exceptions.MlflowException,
        database_exceptions.SQLAlchemyError,
        OSError,
        ValueError,  # of a variable of MLflow's that is no number
    ) as error:
        raise UserError(f"{VARIABLE}: {uri} cannot be used: {uri.reason(error)}") from None


def _client(text: str) -> MlflowClient:
    """A client of a database, whose tables exist then."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(text, registry_uri=text)
    client.search_experiments(max_results=1)
    return client


def _reach(uri: TrackingUri) -> None:
    """Connect once, in a thread, as neither every driver nor a name's look-up limits its waiting.

    Raises:
        UserError: It cannot be reached, or does not answer in time.
    """
    limit = min(CONNECT_S, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
    failed: list[Exception] = []
    if uri.kind == "database":
        # Beforehand: on a busy machine the import alone takes longer than the limit.
        importlib.import_module("mlflow.store.db.utils")

    def reach() -> None:
        try:
            _connect(uri, limit)
        except Exception as error:  # noqa: BLE001 - whatever the driver raises
            failed.append(error)

    thread = threading.Thread(target=reach, daemon=True)
    thread.start()
    thread.join(limit)
    if failed:
        raise UserError(f"{VARIABLE}: {uri} cannot be used: {uri.reason(failed[0])}")
    if thread.is_alive():
        raise UserError(f"{VARIABLE}: {uri} does not answer within {limit:g} s")


def _connect(uri: TrackingUri, limit: float) -> None:
    if uri.kind == "database":
        from mlflow.store.db.utils import create_sqlalchemy_engine

        engine = create_sqlalchemy_engine(uri.text)
        engine.connect().close()
        engine.dispose()
    elif (address := uri.address()) is not None:
        socket.create_connection(address, limit).close()


def _open_sqlite(uri: TrackingUri, database: Path, artifacts: Path) -> MlflowClient:
    from mlflow.tracking import MlflowClient

    database = database.resolve()
    aside = trust.being_made(database)
    if _is_initialised(database) and not aside.exists():
        if anchor.is_moved(database, artifacts):
            with exclusive(uri, "initialise"):
                anchor.anchor(database, artifacts)
        return MlflowClient(uri.text, registry_uri=uri.text)
    # Processes that open a new database at the same time fail with "table already exists".
    with exclusive(uri, "initialise"):
        _remove(aside)  # of a process that was killed
        if not database.exists():
            _create_sqlite(database, aside)
        client = _client(uri.text)
        if anchor.is_moved(database, artifacts):
            anchor.anchor(database, artifacts)
        connection = sqlite3.connect(database, timeout=5)
        # Halves the time of a write. The setting stays in the file and so marks it as initialised.
        # It fails while another program uses the database; writes are then slower.
        with closing(connection), suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode=WAL")
    return client


def _make_tables(text: str) -> None:
    """Create a database's tables, without an experiment for runs of nobody's.

    MLflow makes one where there is none at all, so it is left in the trash.
    """
    client = _client(text)
    default = client.get_experiment_by_name("Default")
    if default is not None and default.lifecycle_stage == "active":
        client.delete_experiment(default.experiment_id)


def _create_sqlite(database: Path, aside: Path) -> None:
    """Create the tables in a temporary file, as an incomplete database could not be opened."""
    from sqlalchemy.engine import URL

    # MLflow makes the folder as its name is written in a URL, and then tries for minutes.
    aside.parent.mkdir(parents=True, exist_ok=True)
    url = URL.create("sqlite", database=str(aside))
    try:
        _make_tables(url.render_as_string(hide_password=False))
        # Whoever may read it may lock it, and its journal, which gets the same mode. By its path:
        # closing a file of a database gives up this process's locks on it.
        with suppress(OSError):  # a file system that has one mode for all
            aside.chmod(mode_for_writers(aside.stat(), aside.parent))
        try:
            os.link(aside, database)  # unlike a rename it replaces nothing
        except FileExistsError:  # of a program that does not know our lock
            return
        except OSError:  # a file system without links
            aside.replace(database)
    finally:
        _remove(aside)


def _remove(database: Path) -> None:
    for suffix in trust.SUFFIXES:
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _is_initialised(database: Path) -> bool:
    if not database.exists():
        return False
    try:
        with closing(sqlite3.connect(database, timeout=5)) as connection:
            return connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    except sqlite3.DatabaseError:  # MLflow gives a better message
        return False


@contextmanager
def _quiet(*names: str, level: int = logging.WARNING) -> Generator[None]:
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
