"""What each worker of a team's server runs: MLflow with logins, and the rules that it lacks.

MLflow lets whoever is logged in say where an experiment's artifacts lie, such as `file:///etc`, and
reads and writes there. Here they lie below the server's own folder, and nothing else is opened.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlTraceTag

LAUNCHER = "SMALLBATCH_TEAM_SERVER"
ARTIFACTS = "SMALLBATCH_TEAM_ARTIFACTS"
_PROXIED = ("mlflow-artifacts", "runs", "models")
"""Schemes that the server resolves to its own folder."""
_LOCAL = ("", "file")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def create_app() -> App:
    """MLflow's application with logins, confined to the folder of artifacts."""
    threading.Thread(target=_end_with, args=(int(os.environ[LAUNCHER]),), daemon=True).start()
    from mlflow.server.auth import create_app as create_mlflow
    from mlflow.server.security import get_allowed_hosts

    _confine_repositories(Path(os.environ[ARTIFACTS]))
    _refuse_locations()
    app = cast("App", create_mlflow())  # under uvicorn
    return _known_hosts_alone(app, get_allowed_hosts())


def _end_with(launcher: int) -> None:
    """End the server once the process that started it is gone, even if that was killed."""
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


def _known_hosts_alone(app: App, allowed: list[str]) -> App:
    """Refuse other hosts at every path; MLflow makes an exception of `/health`."""
    from mlflow.server.security_utils import is_allowed_host_header

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if not is_allowed_host_header(allowed, host):
                head = {"type": "http.response.start", "status": 403, "headers": []}
                await send(head)
                await send({"type": "http.response.body", "body": b"Invalid Host header\n"})
                return
        await app(scope, receive, send)

    return checked


def _confine_repositories(root: Path) -> None:
    """Replace what opens artifacts at a URI: whatever is stored, nothing outside is opened."""
    from mlflow.store.artifact import artifact_repository_registry as repositories

    registry = repositories._artifact_repository_registry  # pyright: ignore[reportPrivateUsage]
    for scheme, open_repository in [*registry.get_registered_artifact_repositories().items()]:
        registry.register(scheme, _confined(open_repository, root))


def _confined(
    open_repository: Callable[..., ArtifactRepository], root: Path
) -> Callable[..., ArtifactRepository]:
    def open_checked(artifact_uri: str, *args: Any, **kwargs: Any) -> ArtifactRepository:
        if not _is_inside(artifact_uri, root):
            raise _refused("the location of these artifacts is outside of the server's folder")
        return open_repository(artifact_uri, *args, **kwargs)

    return open_checked


def _is_inside(uri: str, root: Path) -> bool:
    from mlflow.utils.file_utils import local_file_uri_to_path

    try:
        parts = urlsplit(uri)
        if parts.scheme in _PROXIED:
            return not parts.netloc
        path = Path(local_file_uri_to_path(uri)).resolve()
        return parts.scheme in _LOCAL and not parts.netloc and path.is_relative_to(root)
    except ValueError:
        return False


def _refuse_locations() -> None:
    """Let nobody name a place: clients would follow it on their own machines as well."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
    from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlTraceTag
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as Tracking
    from sqlalchemy import event

    create_experiment, create_version = Tracking.create_experiment, Registry.create_model_version

    def checked_experiment(
        self: Any, name: str, artifact_location: str | None = None, tags: Any = None
    ) -> str:
        if artifact_location:
            raise _refused("artifact_location: this server decides where artifacts lie; give none")
        return create_experiment(self, name, None, tags)

    def checked_version(self: Any, name: str, source: str, *args: Any, **kwargs: Any) -> Any:
        parts = urlsplit(source)
        placeholder = not parts.scheme and "/" not in source  # of a prompt, which has no files
        if not placeholder and (parts.scheme not in _PROXIED or parts.netloc or ".." in source):
            raise _refused("source: allowed are runs:/, models:/ and mlflow-artifacts:/")
        return create_version(self, name, source, *args, **kwargs)

    Tracking.create_experiment = checked_experiment
    Registry.create_model_version = checked_version
    for moment in ("before_insert", "before_update"):
        event.listen(SqlTraceTag, moment, _check_trace_tag)
        event.listen(SqlDataset, moment, _check_dataset)


def _check_trace_tag(_mapper: object, _connection: object, tag: SqlTraceTag) -> None:
    """Refuse a trace's location that is not MLflow's own, whichever request brings it."""
    from mlflow.utils.mlflow_tags import MLFLOW_ARTIFACT_LOCATION, MLFLOW_TRACE_ARCHIVE_LOCATION

    key, place = str(tag.key), str(tag.value)
    if key not in (MLFLOW_ARTIFACT_LOCATION, MLFLOW_TRACE_ARCHIVE_LOCATION):
        return
    own = place.startswith("mlflow-artifacts:/") and not place.startswith("mlflow-artifacts://")
    if not own or ".." in place or not place.endswith(f"/traces/{tag.request_id}/artifacts"):
        raise _refused(f"{key}: this server decides where a trace lies; give none")


def _check_dataset(_mapper: object, _connection: object, dataset: SqlDataset) -> None:
    """Refuse a source that clients would ask for with their login: any host, as MLflow's own."""
    try:
        source = json.loads(str(dataset.dataset_source))
    except ValueError:
        return  # clients cannot read it either
    uri = cast("dict[str, object]", source).get("uri") if isinstance(source, dict) else None
    if not isinstance(uri, str):
        return
    try:
        parts = urlsplit(uri)
        elsewhere = parts.scheme in ("http", "https") or (
            parts.scheme in _PROXIED and bool(parts.netloc)
        )
    except ValueError:
        elsewhere = True
    if elsewhere:
        raise _refused("source: the uri of a dataset names no host; web pages have a url")


def _refused(why: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return MlflowException(why, INVALID_PARAMETER_VALUE)
