"""Where artifacts may lie that come in over HTTP, and which of them a server opens.

MLflow lets whoever reaches it say where an experiment's artifacts lie, such as `file:///etc`, and
reads and writes there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.tracking.dbmodels.models import SqlDataset, SqlTraceTag

_PROXIED = ("mlflow-artifacts", "runs", "models")
"""Schemes that the server resolves to its own folder."""
_LOCAL = ("", "file")


def confine_repositories(root: Path) -> None:
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


def refuse_locations() -> None:
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
