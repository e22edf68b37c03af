"""Writing columns and runs to a tracking store so that each appears exactly once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from smallbatch.tracking import entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow.entities import Run

    from smallbatch.tracking.entries import Point
    from smallbatch.tracking.records import ColumnInfo, ColumnResult, RunInfo, RunResult
    from smallbatch.tracking.store import Store

BATCH = 1000
"""Most metric points that MLflow takes in one request."""


@dataclass
class Changes:
    """What a replay did; all zeros but `unchanged` the second time."""

    runs_created: int = 0
    runs_updated: int = 0
    points_logged: int = 0
    unchanged: int = 0


@dataclass
class Existing:
    """What an experiment holds already, superseded runs left out.

    Attributes:
        columns: The parent run of each column, by column key.
        runs: The run of each run hash.
    """

    columns: dict[str, Run] = field(default_factory=dict[str, "Run"])
    runs: dict[str, Run] = field(default_factory=dict[str, "Run"])


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
            if entries.SUPERSEDED in tags:
                continue
            if entries.RUN in tags:
                existing.runs[tags[entries.RUN]] = run
            elif entries.COLUMN in tags:
                existing.columns[tags[entries.COLUMN]] = run
        token = page.token
        if not token:
            return existing


def create_column(store: Store, experiment_id: str, column: ColumnInfo, started_ms: int) -> str:
    """Creates a column's parent run; its id."""
    run = store.client.create_run(
        experiment_id,
        start_time=started_ms,
        tags=entries.column_tags(column),
        run_name=entries.column_name(column),
    )
    _log_dataset(store, run.info.run_id, column)
    log(store, run.info.run_id, [], started_ms, params=entries.column_params(column))
    return run.info.run_id


def create_run(
    store: Store,
    experiment_id: str,
    column: ColumnInfo,
    run: RunInfo,
    *,
    parent_id: str,
    started_ms: int,
) -> str:
    """Creates a run of a column, params included; its id."""
    created = store.client.create_run(
        experiment_id,
        start_time=started_ms,
        tags=entries.run_tags(column, run, parent_id),
        run_name=entries.run_name(column, run),
    )
    _log_dataset(store, created.info.run_id, column)
    return created.info.run_id


def log(
    store: Store,
    run_id: str,
    points: Iterable[Point],
    when_ms: int | Mapping[int, int],
    *,
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Logs in as few requests as MLflow allows; the tags with the last, after all points.

    Args:
        store: The store.
        run_id: The run.
        points: Metric values.
        when_ms: Their timestamp, or one per step.
        params: Params.
        tags: Tags.
    """
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(key, value, when_ms if isinstance(when_ms, int) else when_ms[step], step)
        for key, step, value in points
    ]
    # MLflow's limit of 1000 counts params and tags as well.
    size = BATCH - 200
    chunks = [metrics[i : i + size] for i in range(0, len(metrics), size)] or [[]]
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

    def __init__(self, store: Store, experiment_id: str, existing: Existing, changes: Changes):
        self.store = store
        self.experiment_id = experiment_id
        self.existing = existing
        self.changes = changes

    def write(self, column: ColumnResult, *, model_wanted: bool) -> tuple[str, bool]:
        """Writes what is missing.

        Args:
            column: The column as its files tell it.
            model_wanted: Whether the best model could be logged now if it is not yet.

        Returns:
            The parent run's id, and whether it still awaits its model and `close`.
        """
        parent = self.existing.columns.get(column.info.key)
        if parent is None:
            parent_id = create_column(
                self.store, self.experiment_id, column.info, column.started_ms
            )
            self.changes.runs_created += 1
        else:
            parent_id = parent.info.run_id
        for run in column.runs:
            self._write_run(column.info, run, parent_id)
        if parent is None:
            return parent_id, True
        tags = parent.data.tags
        complete = tags.get(entries.SYNCED) == column.digest
        if complete and (entries.MODEL in tags or not model_wanted):
            self.changes.unchanged += 1
            return parent_id, False
        self.changes.runs_updated += 1
        return parent_id, True

    def close(self, column: ColumnResult, parent_id: str, model: str | None) -> None:
        """Ends a column's parent run: summary, model and, last, the mark of completeness."""
        client = self.store.client
        parent = self.existing.columns.get(column.info.key)
        done = parent is not None and parent.data.tags.get(entries.SYNCED) == column.digest
        points: list[Point] = []
        if not done:
            # Results that changed since (a wider grid, a re-training) go to the next step.
            step = 0
            if parent is not None and "runs_finished" in parent.data.metrics:
                step = len(client.get_metric_history(parent_id, "runs_finished"))
            points = entries.column_points(column, step)
            if parent is None or parent.info.status != "FINISHED":
                _terminate(self.store, parent_id, column.ended_ms, parent)
        tags = {**entries.column_tags(column.info), entries.SYNCED: column.digest}
        if model is not None:
            tags[entries.MODEL] = model
        elif parent is not None and not done and entries.MODEL in parent.data.tags:
            client.delete_tag(parent_id, entries.MODEL)  # it named the model of other results
        log(self.store, parent_id, points, column.ended_ms, tags=tags)
        self.changes.points_logged += len(points)

    def _write_run(self, column: ColumnInfo, run: RunResult, parent_id: str) -> None:
        existing = self.existing.runs.get(run.info.run)
        if existing is None:
            self._create(column, run, parent_id)
        elif existing.data.tags.get(entries.SYNCED) == run.digest:
            self.changes.unchanged += 1
        elif entries.SYNCED in existing.data.tags:
            self._supersede(existing, column, run, parent_id)
        else:
            logged = logged_points(self.store, existing)
            if _contradicts(logged, run):
                self._supersede(existing, column, run, parent_id)
            else:
                self._complete(existing, logged, column, run)

    def _create(self, column: ColumnInfo, run: RunResult, parent_id: str) -> str:
        run_id = create_run(
            self.store,
            self.experiment_id,
            column,
            run.info,
            parent_id=parent_id,
            started_ms=run.started_ms,
        )
        points = entries.result_points(run)
        self._finish(run_id, run, points, entries.run_params(column, run.info), None)
        self.changes.runs_created += 1
        return run_id

    def _complete(
        self,
        existing: Run,
        logged: Mapping[tuple[str, int], float],
        column: ColumnInfo,
        run: RunResult,
    ) -> None:
        points = [it for it in entries.result_points(run) if (it.key, it.step) not in logged]
        params = entries.run_params(column, run.info)
        missing = {key: params[key] for key in params.keys() - existing.data.params.keys()}
        if existing.inputs is None or not existing.inputs.dataset_inputs:
            _log_dataset(self.store, existing.info.run_id, column)
        self._finish(existing.info.run_id, run, points, missing, existing)
        self.changes.runs_updated += 1

    def _supersede(self, existing: Run, column: ColumnInfo, run: RunResult, parent_id: str) -> None:
        new_id = self._create(column, run, parent_id)
        old_id = existing.info.run_id
        if existing.info.status == "RUNNING":
            _terminate(self.store, old_id, _now_ms(), existing, status="KILLED")
        self.store.client.set_tag(old_id, entries.SUPERSEDED, new_id)

    def _finish(
        self,
        run_id: str,
        run: RunResult,
        points: list[Point],
        params: Mapping[str, str],
        existing: Run | None,
    ) -> None:
        last = len(run.rows)
        _terminate(self.store, run_id, run.timestamp_ms(last), existing)
        when = {step: run.timestamp_ms(step) for step in range(last + 1)}
        # The mark of completeness comes with the last points: a replay cut short is taken up again.
        log(self.store, run_id, points, when, params=params, tags=entries.result_tags(run))
        self.changes.points_logged += len(points)


def _terminate(
    store: Store, run_id: str, ended_ms: int, existing: Run | None, status: str = "FINISHED"
) -> None:
    started = existing.info.start_time if existing else None
    store.client.set_terminated(run_id, status, end_time=max(ended_ms, started or 0))


def _contradicts(logged: Mapping[tuple[str, int], float], run: RunResult) -> bool:
    """Whether a store holds a value of this run that its result files do not."""
    true = {(it.key, it.step): it.value for it in entries.result_points(run)}
    return any(
        where not in true or not math.isclose(value, true[where], rel_tol=1e-9)
        for where, value in logged.items()
    )


def _log_dataset(store: Store, run_id: str, column: ColumnInfo) -> None:
    import json

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


def _now_ms() -> int:
    return round(time.time() * 1000)
