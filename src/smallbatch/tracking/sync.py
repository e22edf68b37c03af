"""Replays result files into MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from smallbatch.errors import UserError
from smallbatch.records.columns import find_columns, told_copy
from smallbatch.redact import redact
from smallbatch.tracking.existing import find_existing
from smallbatch.tracking.experiment import describe_experiment
from smallbatch.tracking.locks import exclusive
from smallbatch.tracking.mirror import ColumnWriter, SyncReport
from smallbatch.tracking.records import TrackedColumn, read_column
from smallbatch.tracking.registry import register_best
from smallbatch.tracking.store import Store, open_store, plain_errors, unwarned
from smallbatch.tracking.superseded import restore_deleted
from smallbatch.tracking.uri import TrackingUri

_ITS_FAULT = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
"""MLflow's codes for values that it does not take; all others are about the store."""
_ODD = (ArithmeticError, LookupError, TypeError, ValueError)


def sync(paths: Path | Iterable[Path], uri: str | None = None) -> SyncReport:
    """Make MLflow equal to every complete column at or below `paths`.

    Runs are recognised by their hash. A missing run is created, an incomplete one (from a training
    or an interrupted replay) is completed, and a complete one is not changed, so that a second call
    changes nothing. If a column has other results than MLflow, newer or older ones, its runs are
    logged anew where they differ, and the others go to MLflow's trash; from there a column's own
    run comes back that somebody deleted by hand. Columns of other settings that lay in the same
    folder before are marked. What another folder logged is left alone; where it is equal, nothing
    is logged. A column that cannot be read or logged, or that is there twice with different
    results, does not keep the others back.

    Args:
        paths: Column directories, or directories above them such as `models/`.
        uri: The tracking URI; by default MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.

    Raises:
        UserError: A path or a result file is bad, or the tracking store cannot be used.
    """
    folders = [paths] if isinstance(paths, Path) else paths
    found = dict.fromkeys(column for folder in folders for column in find_columns(folder)[0])
    if not found:
        return SyncReport(0)
    store = TrackingUri.parse(uri)  # before anything is read or made
    refused: dict[Path, str] = {}
    columns: list[TrackedColumn] = []
    for directory in found:
        _try(directory, refused, lambda at=directory: columns.append(read_column(at)))
    columns = _without_copies(columns, refused)
    report = SyncReport(len(found))
    if columns:
        _replay(columns, store, report, refused)
    if refused:
        raise UserError(_told(refused, len(found), uri or ""))
    return report


def _without_copies(columns: list[TrackedColumn], refused: dict[Path, str]) -> list[TrackedColumn]:
    """One folder of each column; none where folders differ, as which is right is not known."""
    by_key: dict[str, list[TrackedColumn]] = {}
    for column in columns:
        by_key.setdefault(column.info.key, []).append(column)
    for same in by_key.values():
        if len({column.digest for column in same}) > 1:
            for one, other in zip(same, [*same[1:], same[0]], strict=True):
                told = told_copy(one.directory, other.directory, one.info.experiment)
                refused[one.directory] = told
    return [same[0] for same in by_key.values() if same[0].directory not in refused]


def _replay(
    columns: list[TrackedColumn], uri: TrackingUri, report: SyncReport, refused: dict[Path, str]
) -> None:
    with plain_errors(uri), unwarned():
        store = open_store(uri)
        experiments: dict[str, list[TrackedColumn]] = {}
        for column in columns:
            experiments.setdefault(column.info.experiment, []).append(column)
        for name, own in experiments.items():
            # One process at a time, because two could create the same runs.
            with exclusive(uri, name):
                _replay_experiment(store, name, own, report, refused)


def _replay_experiment(
    store: Store,
    name: str,
    columns: list[TrackedColumn],
    report: SyncReport,
    refused: dict[Path, str],
) -> None:
    experiment_id = store.experiment_id(name)
    describe_experiment(store, experiment_id, columns[-1].info)
    restore_deleted(store, experiment_id, [column.info for column in columns])
    key = columns[0].info.key if len(columns) == 1 else None
    found = find_existing(store, experiment_id, key)
    present = [column.info.key for column in columns]
    writer = ColumnWriter(store, experiment_id, found, report, present)
    for column in columns:
        _try(column.directory, refused, lambda it=column: writer.write(it))
    written = [column for column in columns if column.directory not in refused]
    register_best(store, experiment_id, written)


def _try(directory: Path, refused: dict[Path, str], action: Callable[[], None]) -> None:
    """Do something for one column; note why it is refused where that is its own fault."""
    try:
        action()
    except UserError as error:
        refused[directory] = str(error)
    except OSError as error:
        if str(directory) not in str(error):  # else one of its files is missing
            raise
        refused[directory] = str(error)
    except _ODD as error:
        refused[directory] = f"{directory}: odd results ({type(error).__name__}: {error})"
    except Exception as error:
        code = getattr(error, "error_code", None)
        if code not in _ITS_FAULT and not isinstance(error.__cause__, _ODD):
            raise
        refused[directory] = f"{directory}: MLflow does not take it: {error}"


def _told(refused: dict[Path, str], columns: int, uri: str) -> str:
    first = redact(next(iter(refused.values())), uri).strip().partition("\n")[0][:500]
    others = [str(directory) for directory in refused][1:]
    told = f"{first} (also not logged: {', '.join(others)})" if others else first
    rest = columns - len(refused)
    return f"{told}; the other {rest} of {columns} columns are in MLflow" if columns > 1 else told
