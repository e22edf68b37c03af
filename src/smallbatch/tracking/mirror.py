"""Writing columns and runs to a tracking store so that each appears exactly once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smallbatch.tracking import entries
from smallbatch.tracking.best_model import log_best_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow.entities import Run

    from smallbatch.tracking.entries import Point
    from smallbatch.tracking.records import ColumnInfo, RunInfo, TrackedColumn, TrackedRun
    from smallbatch.tracking.store import Store

BATCH = 800
"""Metric points in one request; MLflow takes 1000 values, params and tags included."""


@dataclass
class SyncReport:
    """What a replay found and did; the second time, zeros but `columns` and `unchanged`.

    Attributes:
        columns: Columns found.
        runs_created: MLflow runs created, the columns' parent runs included.
        runs_updated: Runs that were there, incomplete, and are complete now.
        points_logged: Metric points logged.
        unchanged: Runs that were complete already.
    """

    columns: int = 0
    runs_created: int = 0
    runs_updated: int = 0
    points_logged: int = 0
    unchanged: int = 0


@dataclass
class Existing:
    """What an experiment holds already.

    Attributes:
        columns: The parent run of each column, by column key.
        runs: The run of each column key and run hash.
    """

    columns: dict[str, Run] = field(default_factory=dict[str, "Run"])
    runs: dict[tuple[str, str], Run] = field(default_factory=dict[tuple[str, str], "Run"])


def find_existing(store: Store, experiment_id: str, column_key: str | None = None) -> Existing:
    """One search of an experiment, or of one column in it."""
    existing = Existing()
    filter_string = f"tags.`{entries.COLUMN}` = '{column_key}'" if column_key else ""
    token: str | None = None
    while True:
        page = store.client.search_runs(
            [experiment_id], filter_string, max_results=5000, page_token=token
        )
        for run in page:
            tags = run.data.tags
            if entries.RUN in tags:
                existing.runs[tags[entries.COLUMN], tags[entries.RUN]] = run
            elif entries.COLUMN in tags:
                existing.columns[tags[entries.COLUMN]] = run
        token = page.token
        if not token:
            return existing


def create(
    store: Store,
    experiment_id: str,
    column: ColumnInfo,
    started_ms: int,
    *,
    run: RunInfo | None = None,
    parent_id: str = "",
) -> str:
    """Creates the MLflow run of a run, or with `run` left out of a column; its id."""
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
    """Logs in as few requests as MLflow allows; the tags with the last, after all points.

    Args:
        store: The store.
        run_id: The run.
        points: Metric values.
        when_ms: Their timestamps, by step.
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


def logged_points(store: Store, run: Run) -> dict[tuple[str, int], float]:
    """Every metric value that a run holds, by name and step."""
    return {
        (metric.key, metric.step): metric.value
        for key in run.data.metrics
        for metric in store.client.get_metric_history(run.info.run_id, key)
    }


class ColumnWriter:
    """Brings one column of a store in line with its result files."""

    def __init__(self, store: Store, experiment_id: str, existing: Existing, report: SyncReport):
        self.store = store
        self.experiment_id = experiment_id
        self.existing = existing
        self.report = report

    def write(self, column: TrackedColumn) -> None:
        """Writes what is missing: runs, then the column's summary, its best model and the mark."""
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
        tags = {**entries.column_tags(info), entries.SYNCED: column.digest}
        tags[entries.MODEL] = log_best_model(self.store, self.experiment_id, column, parent_id)
        self._complete(
            info,
            parent_id,
            parent,
            entries.column_points(column),
            {0: column.ended_ms},
            params=entries.column_params(info),
            tags=tags,
        )

    def _write_run(self, column: ColumnInfo, run: TrackedRun, parent_id: str) -> None:
        existing = self.existing.runs.get((column.key, run.info.run))
        logged: Mapping[tuple[str, int], float] = {}
        if existing is not None:
            synced = existing.data.tags.get(entries.SYNCED)
            if synced == run.digest:
                self.report.unchanged += 1
                return
            logged = logged_points(self.store, existing)
            if synced or _contradicts(logged, run):
                # Trained again with other results: the files win, MLflow's trash keeps the old run.
                self.store.client.delete_run(existing.info.run_id)
                existing, logged = None, {}
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
        self._complete(
            column,
            run_id,
            existing,
            [
                point
                for point in entries.result_points(run)
                if (point.key, point.step) not in logged
            ],
            {step: run.timestamp_ms(step) for step in range(len(run.rows) + 1)},
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
        """Ends a run. MLflow takes a data set or a param that it has as no change."""
        _log_dataset(self.store, run_id, column)
        started = existing.info.start_time if existing else None
        ended_ms = max(*when_ms.values(), started or 0)
        self.store.client.set_terminated(run_id, "FINISHED", end_time=ended_ms)
        # The mark of completeness comes with the last points: a replay cut short is taken up again.
        log(self.store, run_id, points, when_ms, params=params, tags=tags)
        self.report.points_logged += len(points)
        if existing:
            self.report.runs_updated += 1
        else:
            self.report.runs_created += 1


def _contradicts(logged: Mapping[tuple[str, int], float], run: TrackedRun) -> bool:
    """Whether a store holds a value of this run that its result files do not."""
    true = {(it.key, it.step): it.value for it in entries.result_points(run)}
    return any(
        where not in true or not math.isclose(value, true[where], rel_tol=1e-9)
        for where, value in logged.items()
    )


def _log_dataset(store: Store, run_id: str, column: ColumnInfo) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=column.dataset,
        # MLflow keeps 36 characters; the tag `smallbatch.fingerprint` holds all 64.
        digest=column.fingerprint[:36],
        source_type="local",
        source=json.dumps({"uri": f"data/prepared/{column.dataset}", "source": column.source}),
    )
    context = InputTag("mlflow.data.context", "training")
    store.client.log_inputs(run_id, [DatasetInput(dataset, [context])])
