"""Replaying result files into MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from smallbatch.errors import UserError
from smallbatch.tracking.records import ColumnResult, find_columns, read_column
from smallbatch.tracking.store import exclusive, open_store, tracking_uri, unwarned

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from smallbatch.tracking.mirror import Changes, Existing
    from smallbatch.tracking.store import Store


@dataclass(frozen=True)
class SyncReport:
    """What a replay found and did.

    Attributes:
        columns: Columns found.
        runs_created: MLflow runs created, the columns' parent runs included.
        runs_updated: Runs that were there, incomplete, and are complete now.
        points_logged: Metric points logged.
        unchanged: Runs that were complete already.
    """

    columns: int
    runs_created: int
    runs_updated: int
    points_logged: int
    unchanged: int


def sync(paths: Path | Iterable[Path], uri: str | None = None) -> SyncReport:
    """Brings MLflow in line with every column at or below `paths`.

    Runs are recognised by their hash. A run that MLflow lacks is created, one that was logged in
    part (while it trained, or by a replay cut short) is completed, a complete one is left alone:
    a second call changes nothing. Where a column was trained again with other results, as on other
    hardware, the files win: the run is logged anew and the old one kept, tagged
    `smallbatch.superseded` with the new one's id.

    Args:
        paths: Column directories, or directories above them such as `models/`.
        uri: Tracking URI; by default MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.

    Raises:
        UserError: A path or a result file is bad, or the tracking store cannot be used.
    """
    columns = [read_column(directory) for directory in find_columns(paths)]
    uri = tracking_uri(uri)
    if not columns:
        return SyncReport(0, 0, 0, 0, 0)
    try:
        with unwarned():
            import mlflow.exceptions as mlflow_exceptions
    except ImportError as error:
        raise UserError(f"mlflow cannot be imported ({error}); install it to sync") from error
    try:
        with unwarned():
            changes = _replay(columns, uri)
    # requests' errors, which artifact uploads let through, are OSErrors.
    except (mlflow_exceptions.MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(f"MLFLOW_TRACKING_URI: {uri} cannot be used: {reason}") from error
    return SyncReport(
        len(columns),
        changes.runs_created,
        changes.runs_updated,
        changes.points_logged,
        changes.unchanged,
    )


def _replay(columns: list[ColumnResult], uri: str) -> Changes:
    from smallbatch.tracking.mirror import Changes, find_existing

    store, changes = open_store(uri), Changes()
    experiments: dict[str, list[ColumnResult]] = {}
    for column in columns:
        experiments.setdefault(column.info.experiment, []).append(column)
    for name, own in experiments.items():
        experiment_id = store.experiment_id(name)
        # One process at a time, or both would create what neither has found.
        with exclusive(uri, name):
            key = own[0].info.key if len(own) == 1 else None
            existing = find_existing(store, experiment_id, key)
            for column in own:
                _write(store, experiment_id, column, existing, changes)
    return changes


def _write(
    store: Store,
    experiment_id: str,
    column: ColumnResult,
    existing: Existing,
    changes: Changes,
) -> None:
    from smallbatch.tracking.best_model import log_best_model, model_facts
    from smallbatch.tracking.mirror import ColumnWriter

    writer = ColumnWriter(store, experiment_id, existing, changes)
    facts = model_facts(column)
    parent_id, open_ = writer.write(column, model_wanted=facts is not None)
    if open_:
        model = log_best_model(store, experiment_id, column, facts, parent_id) if facts else None
        writer.close(column, parent_id, model)
