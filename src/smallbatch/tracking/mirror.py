"""Writes columns and runs to a tracking store, so that each appears exactly once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from smallbatch.tracking import entries
from smallbatch.tracking.best_model import log_best_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow.entities import Metric, Run

    from smallbatch.tracking.entries import Point
    from smallbatch.tracking.records import ColumnInfo, RunInfo, TrackedColumn, TrackedRun
    from smallbatch.tracking.store import Store

_Key = TypeVar("_Key")

BATCH = 800
"""Metric points in one request; MLflow allows 1000 values, including params and tags."""


@dataclass
class SyncReport:
    """What a replay found and did.

    Attributes:
        columns: Columns found.
        runs_created: MLflow runs created, including the columns' parent runs.
        runs_updated: MLflow runs that existed and were completed.
        points_logged: Metric points logged.
        unchanged: MLflow runs that were complete already.
    """

    columns: int = 0
    runs_created: int = 0
    runs_updated: int = 0
    points_logged: int = 0
    unchanged: int = 0


@dataclass
class Existing:
    """What an experiment contains already.

    Attributes:
        columns: The parent run of each column, by column key.
        runs: The runs, by column key and run hash.
        doubled: The ids of further MLflow runs for the same column or run. They arise when a slow
            server answers too late: the request is repeated, and the server carries out both.
    """

    columns: dict[str, Run] = field(default_factory=dict[str, "Run"])
    runs: dict[tuple[str, str], Run] = field(default_factory=dict[tuple[str, str], "Run"])
    doubled: list[str] = field(default_factory=list[str])

    def add(self, run: Run) -> None:
        """Add an MLflow run; of equal ones, a complete one is kept, otherwise the first."""
        tags = run.data.tags
        if entries.RUN in tags:
            self._add(self.runs, (tags[entries.COLUMN], tags[entries.RUN]), run)
        elif entries.COLUMN in tags:
            self._add(self.columns, tags[entries.COLUMN], run)

    def _add(self, same: dict[_Key, Run], key: _Key, run: Run) -> None:
        held = same.setdefault(key, run)
        if held is run:
            return
        if entries.SYNCED in run.data.tags and entries.SYNCED not in held.data.tags:
            same[key], run = run, held
        self.doubled.append(run.info.run_id)


def find_existing(store: Store, experiment_id: str, column_key: str | None = None) -> Existing:
    """Search an experiment, or only one column in it."""
    existing = Existing()
    filter_string = f"tags.`{entries.COLUMN}` = '{column_key}'" if column_key else ""
    token: str | None = None
    while True:
        page = store.client.search_runs(
            [experiment_id], filter_string, max_results=5000, page_token=token
        )
        for run in page:
            existing.add(run)
        token = page.token
        if not token:
            return existing


def discard_doubled(store: Store, existing: Existing) -> None:
    """Move doubled runs to MLflow's trash."""
    while existing.doubled:
        store.client.delete_run(existing.doubled.pop())


def create(
    store: Store,
    experiment_id: str,
    column: ColumnInfo,
    started_ms: int,
    *,
    run: RunInfo | None = None,
    parent_id: str = "",
) -> str:
    """Create the MLflow run of a run, or of a column if `run` is None, and return its id."""
    created = store.client.create_run(
        experiment_id,
        start_time=started_ms,
        tags=entries.run_tags(column, run, parent_id) if run else entries.column_tags(column),
        run_name=entries.run_name(column, run) if run else entries.column_name(column),
    )
    return created.info.run_id


def log(
    store: Store,
    run_id: str,
    points: Iterable[Point],
    when_ms: Mapping[int, int],
    *,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log in as few requests as possible; the tags come last, after all points.

    Args:
        store: The store.
        run_id: The id of the MLflow run.
        points: Metric values.
        when_ms: The timestamps of the points, by step.
        params: Params.
        tags: Tags.
    """
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(key, value, when_ms[step], step) for key, step, value in points]
    chunks = [metrics[i : i + BATCH] for i in range(0, len(metrics), BATCH)] or [[]]
    for i, chunk in enumerate(chunks):
        first, last = i == 0, i == len(chunks) - 1
        store.client.log_batch(
            run_id,
            metrics=chunk,
            params=[Param(*item) for item in params.items()] if params and first else [],
            tags=[RunTag(*item) for item in tags.items()] if tags and last else [],
        )


def logged_metrics(store: Store, run_id: str, names: Iterable[str]) -> list[Metric]:
    """All values that a run has of these metrics."""
    return [metric for name in names for metric in store.client.get_metric_history(run_id, name)]


class ColumnWriter:
    """Makes one column of a store equal to its result files."""

    def __init__(self, store: Store, experiment_id: str, existing: Existing, report: SyncReport):
        self.store = store
        self.experiment_id = experiment_id
        self.existing = existing
        self.report = report

    def write(self, column: TrackedColumn) -> None:
        """Write what is missing: runs, then the column's metrics, best model and tag."""
        info = column.info
        parent = self.existing.columns.get(info.key)
        parent_id = (
            parent.info.run_id
            if parent
            else create(self.store, self.experiment_id, info, column.started_ms)
        )
        for run in column.runs:
            self._write_run(info, run, parent_id)
        if parent and parent.data.tags.get(entries.SYNCED) == column.digest:
            self.report.unchanged += 1
            return
        shown = parent.data.metrics if parent else {}
        # An interrupted replay has logged the speed, but not the tag.
        settled = () if parent and entries.SYNCED in parent.data.tags else entries.SPEED
        points = [
            point
            for point in entries.column_points(column)
            if point.key not in shown
            or (shown[point.key] != point.value and point.key not in settled)
        ]
        tags = {**entries.column_tags(info), entries.SYNCED: column.digest}
        tags[entries.MODEL] = log_best_model(self.store, self.experiment_id, column, parent_id)
        self._complete(
            info,
            parent_id,
            parent,
            points,
            {0: column.ended_ms},
            params=entries.column_params(info),
            tags=tags,
        )

    def _write_run(self, column: ColumnInfo, run: TrackedRun, parent_id: str) -> None:
        existing = self.existing.runs.get((column.key, run.info.run))
        logged: list[Metric] = []
        if existing is not None:
            run_id = existing.info.run_id
            if existing.data.tags.get(entries.PARENT) != parent_id:  # its parent was doubled
                self.store.client.set_tag(run_id, entries.PARENT, parent_id)
            synced = existing.data.tags.get(entries.SYNCED)
            if synced == run.digest:
                self.report.unchanged += 1
                return
            logged = logged_metrics(self.store, run_id, existing.data.metrics)
            if synced or _contradicts(logged, run):
                # Trained again with other results: the files are right, the old run is deleted.
                self.store.client.delete_run(run_id)
                existing, logged = None, []
        run_id = (
            existing.info.run_id
            if existing
            else create(
                self.store,
                self.experiment_id,
                column,
                run.started_ms,
                run=run.info,
                parent_id=parent_id,
            )
        )
        held = {(metric.key, metric.step) for metric in logged}
        missing = [it for it in entries.result_points(run) if (it.key, it.step) not in held]
        when_ms = run.timestamps_ms({metric.step: metric.timestamp for metric in logged})
        if existing and any(point.key in entries.EPOCH_METRICS for point in missing):
            # Points that a live mirror sent and gave up may arrive only now, with other timestamps,
            # and are then doubled. So the run is checked again before it counts as complete.
            log(self.store, run_id, missing, when_ms)
            names = {*existing.data.metrics, *(point.key for point in missing)}
            if _contradicts(logged_metrics(self.store, run_id, names), run):
                self.store.client.delete_run(run_id)
                del self.existing.runs[column.key, run.info.run]
                self._write_run(column, run, parent_id)
                return
        self._complete(
            column,
            run_id,
            existing,
            missing,
            when_ms,
            params=entries.run_params(column, run.info),
            tags=entries.result_tags(run),
        )

    def _complete(
        self,
        column: ColumnInfo,
        run_id: str,
        existing: Run | None,
        points: list[Point],
        when_ms: Mapping[int, int],
        *,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """End a run. MLflow ignores a data set or a param that the run has already."""
        _log_dataset(self.store, run_id, column)
        started = existing.info.start_time if existing else None
        ended_ms = max(*when_ms.values(), started or 0)
        self.store.client.set_terminated(run_id, "FINISHED", end_time=ended_ms)
        # The tag that marks a run as complete comes with the last points, so that an interrupted
        # replay is continued by the next one.
        log(self.store, run_id, points, when_ms, params=params, tags=tags)
        self.report.points_logged += len(points)
        if existing:
            self.report.runs_updated += 1
        else:
            self.report.runs_created += 1


def _contradicts(logged: list[Metric], run: TrackedRun) -> bool:
    """Whether a store has a value that differs from the result files, or has one twice."""
    true = {(it.key, it.step): it.value for it in entries.result_points(run)}
    places = [(metric.key, metric.step) for metric in logged]
    return len(set(places)) < len(places) or any(
        place not in true or not math.isclose(metric.value, true[place], rel_tol=1e-9)
        for place, metric in zip(places, logged, strict=True)
    )


def _log_dataset(store: Store, run_id: str, column: ColumnInfo) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=column.dataset,
        # MLflow allows 36 characters; the tag `smallbatch.fingerprint` has all 64.
        digest=column.fingerprint[:36],
        source_type="local",
        source=json.dumps({"uri": f"data/prepared/{column.dataset}", "source": column.source}),
    )
    context = InputTag("mlflow.data.context", "training")
    store.client.log_inputs(run_id, [DatasetInput(dataset, [context])])
