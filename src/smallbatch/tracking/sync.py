"""Replays result files into MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.errors import UserError
from smallbatch.records.columns import find_columns
from smallbatch.tracking.mirror import ColumnWriter, SyncReport, discard_doubled, find_existing
from smallbatch.tracking.records import TrackedColumn, read_column
from smallbatch.tracking.store import exclusive, hidden, open_store, shown, tracking_uri, unwarned

if TYPE_CHECKING:
    from collections.abc import Iterable


def sync(paths: Path | Iterable[Path], uri: str | None = None) -> SyncReport:
    """Make MLflow equal to every complete column at or below `paths`.

    Runs are recognised by their hash. A missing run is created, an incomplete one (from a training
    or an interrupted replay) is completed, and a complete one is not changed, so that a second call
    changes nothing. If a column was trained again with other results, for example on other
    hardware, the run is logged anew, and the old one goes to MLflow's trash.

    Args:
        paths: Column directories, or directories above them such as `models/`.
        uri: The tracking URI; by default MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.

    Raises:
        UserError: A path or a result file is bad, or the tracking store cannot be used.
    """
    folders = [paths] if isinstance(paths, Path) else paths
    found = dict.fromkeys(column for folder in folders for column in find_columns(folder)[0])
    columns = [read_column(directory) for directory in found]
    uri, report = tracking_uri(uri), SyncReport(len(columns))
    if not columns:
        return report
    try:
        with unwarned():
            import mlflow.exceptions as mlflow_exceptions
            import sqlalchemy.exc as database_exceptions
    except ImportError as error:
        raise UserError(f"mlflow cannot be imported ({error}); install it to sync") from error
    try:
        with unwarned():
            _replay(columns, uri, report)
    # Artifact uploads raise errors of requests, which are OSErrors.
    except (
        mlflow_exceptions.MlflowException,
        database_exceptions.SQLAlchemyError,
        OSError,
    ) as error:
        reason = hidden(str(error) or type(error).__name__, uri)
        raise UserError(f"MLFLOW_TRACKING_URI: {shown(uri)} cannot be used: {reason}") from None
    return report


def _replay(columns: list[TrackedColumn], uri: str, report: SyncReport) -> None:
    store = open_store(uri)
    experiments: dict[str, list[TrackedColumn]] = {}
    for column in columns:
        experiments.setdefault(column.info.experiment, []).append(column)
    for name, own in experiments.items():
        experiment_id = store.experiment_id(name)
        # One process at a time, because two could create the same runs.
        with exclusive(uri, name):
            key = own[0].info.key if len(own) == 1 else None
            existing = find_existing(store, experiment_id, key)
            discard_doubled(store, existing)
            writer = ColumnWriter(store, experiment_id, existing, report)
            for column in own:
                writer.write(column)
