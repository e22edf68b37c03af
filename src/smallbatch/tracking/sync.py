"""Replaying result files into MLflow."""

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
    """Brings MLflow in line with every complete column at or below `paths`.

    Runs are recognised by their hash. A run that MLflow lacks is created, one that was logged in
    part (while it trained, or by a replay cut short) is completed, a complete one is left alone:
    a second call changes nothing. Where a column was trained again with other results, as on other
    hardware, the files win: the run is logged anew and the old one goes to MLflow's trash.

    Args:
        paths: Column directories, or directories above them such as `models/`.
        uri: Tracking URI; by default MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.

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
    # requests' errors, which artifact uploads let through, are OSErrors.
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
        # One process at a time, or both would create what neither has found.
        with exclusive(uri, name):
            key = own[0].info.key if len(own) == 1 else None
            existing = find_existing(store, experiment_id, key)
            discard_doubled(store, existing)
            writer = ColumnWriter(store, experiment_id, existing, report)
            for column in own:
                writer.write(column)
