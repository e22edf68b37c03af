"""Writes columns and runs to a tracking store, so that each appears exactly once."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smallbatch.tracking import entries
from smallbatch.tracking.best_model import NO_MODEL, log_best_model
from smallbatch.tracking.superseded import discard, is_outdated, supersede

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from mlflow.entities import Metric, Run

    from smallbatch.tracking.entries import Point
    from smallbatch.tracking.existing import Existing, Found
    from smallbatch.tracking.records import ColumnInfo, RunInfo, TrackedColumn, TrackedRun
    from smallbatch.tracking.store import Store

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
        runs_discarded: MLflow runs of other results, moved to MLflow's trash.
    """

    columns: int = 0
    runs_created: int = 0
    runs_updated: int = 0
    points_logged: int = 0
    unchanged: int = 0
    runs_discarded: int = 0


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
    model_id: str | None = None,
) -> None:
    """Log in as few requests as possible; the tags come last, after all points.

    Args:
        store: The store.
        run_id: The id of the MLflow run.
        points: Metric values.
        when_ms: The timestamps of the points, by step.
        params: Params.
        tags: Tags.
        model_id: The id of a logged model that has these metrics as well.
    """
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric(key, value, when_ms[step], step, model_id) for key, step, value in points]
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

    def __init__(self, store: Store, experiment_id: str, found: Found, report: SyncReport,
                 present: Collection[str] = ()):  # fmt: skip
        self.store = store
        self.experiment_id = experiment_id
        self.found = found
        self.report = report
        self.present = present  # keys of the columns that are on disk

    def write(self, column: TrackedColumn) -> None:
        """Write what is missing: runs, then the column's metrics, best model and tags.

        What another folder logged stays as it is. If that is equal, it is not logged again.
        """
        info = column.info
        own = self.found.own(info)
        while own.doubled:
            discard(self.store, own.doubled.pop())
        whole = [it for it in (own, *self.found.elsewhere(info)) if it.shows(column)]
        kept = min(whole, key=lambda it: it.rank, default=own)
        if kept is own:
            self._write(column, own)
            return
        for run in own:
            self._discard(run)
        if kept.superseded:  # its folder has other settings now, so it is this one's
            self._write(column, kept)
            return
        supersede(self.store, self.experiment_id, info.place, info.key, self.present)
        self.report.unchanged += 1 + len(column.runs)

    def _write(self, column: TrackedColumn, existing: Existing) -> None:
        info, points = column.info, entries.column_points(column)
        parent = existing.parent
        if parent and is_outdated(self.store, parent, column):
            # MLflow forgets no metric of a run, and shows the newest: so a new one is made.
            self._discard(parent)
            parent = None
        parent_id = (
            parent.info.run_id
            if parent
            else create(self.store, self.experiment_id, info, column.started_ms)
        )
        for run in column.runs:
            self._write_run(info, run, parent_id, existing)
        hashes = {run.info.run for run in column.runs}
        for run_hash, run in existing.runs.items():
            if run_hash not in hashes:
                self._discard(run)
        tags = {**entries.column_tags(info), entries.SYNCED: column.digest}
        if parent and parent.info.status == "FINISHED" and _has_tags(parent, tags):
            self.report.unchanged += 1
            return
        supersede(self.store, self.experiment_id, info.place, info.key, self.present)
        self._log_system(column, parent_id, parent)
        uri = log_best_model(self.store, self.experiment_id, column, parent_id)
        tags[entries.MODEL] = uri
        shown = parent.data.metrics if parent else {}
        self._complete(
            info,
            parent_id,
            parent,
            [point for point in points if point.key not in shown],
            {0: column.ended_ms},
            params=entries.column_params(info),
            tags=tags,
            model_id=None if uri == NO_MODEL else uri.removeprefix("models:/"),
        )

    def _log_system(self, column: TrackedColumn, parent_id: str, parent: Run | None) -> None:
        """What the training took of the machine, by the names of MLflow's own such metrics."""
        points = entries.system_points(column)
        names = {point.key for point in points} & set(parent.data.metrics if parent else ())
        held = {(it.key, it.step) for it in logged_metrics(self.store, parent_id, names)}
        when_ms = dict(enumerate(it.time for it in column.system.samples)) if column.system else {}
        missing = [point for point in points if (point.key, point.step) not in held]
        if missing:
            log(self.store, parent_id, missing, when_ms)
            self.report.points_logged += len(missing)

    def _discard(self, run: Run) -> None:
        discard(self.store, run)
        self.report.runs_discarded += 1

    def _write_run(
        self, column: ColumnInfo, run: TrackedRun, parent_id: str, of_column: Existing
    ) -> None:
        existing = of_column.runs.get(run.info.run)
        column = replace(column, environment={**column.environment, **run.environment})
        tags = {**entries.run_tags(column, run.info, parent_id), **entries.result_tags(run)}
        logged: list[Metric] = []
        if existing is not None:
            run_id = existing.info.run_id
            synced = existing.data.tags.get(entries.SYNCED)
            if synced == run.digest:
                if _has_tags(existing, tags):
                    self.report.unchanged += 1
                else:
                    log(self.store, run_id, [], {}, tags=tags)
                    self._delete_stale_tags(existing, tags)
                    self.report.runs_updated += 1
                return
            logged = logged_metrics(self.store, run_id, existing.data.metrics)
            if synced or _contradicts(logged, column, run):
                # Trained again with other results: the files are right, the old run is deleted.
                self._discard(existing)
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
        missing = [it for it in entries.result_points(column, run) if (it.key, it.step) not in held]
        when_ms = run.timestamps_ms({metric.step: metric.timestamp for metric in logged})
        if existing and any(point.key in entries.EPOCH_METRICS for point in missing):
            # Points that a live mirror sent and gave up may arrive only now, with other timestamps,
            # and are then doubled. So the run is checked again before it counts as complete.
            log(self.store, run_id, missing, when_ms)
            names = {*existing.data.metrics, *(point.key for point in missing)}
            if _contradicts(logged_metrics(self.store, run_id, names), column, run):
                self._discard(existing)
                del of_column.runs[run.info.run]
                self._write_run(column, run, parent_id, of_column)
                return
        self._complete(
            column,
            run_id,
            existing,
            missing,
            when_ms,
            params=entries.run_params(column, run.info),
            tags=tags,
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
        model_id: str | None = None,
    ) -> None:
        """End a run. MLflow ignores a data set or a param that the run has already."""
        _log_dataset(self.store, run_id, column)
        started = existing.info.start_time if existing else None
        ended_ms = max(*when_ms.values(), started or 0)
        self.store.client.set_terminated(run_id, "FINISHED", end_time=ended_ms)
        # The tag that marks a run as complete comes with the last points, so that an interrupted
        # replay is continued by the next one.
        log(self.store, run_id, points, when_ms, params=params, tags=tags, model_id=model_id)
        self.report.points_logged += len(points)
        if existing:
            self._delete_stale_tags(existing, tags)
            self.report.runs_updated += 1
        else:
            self.report.runs_created += 1

    def _delete_stale_tags(self, existing: Run, tags: Mapping[str, str]) -> None:
        for key in entries.stale_tags(existing.data.tags, tags):
            self.store.client.delete_tag(existing.info.run_id, key)


def _has_tags(run: Run, tags: Mapping[str, str]) -> bool:
    present = run.data.tags
    return tags.items() <= present.items() and not entries.stale_tags(present, tags)


def _contradicts(logged: list[Metric], column: ColumnInfo, run: TrackedRun) -> bool:
    """Whether a store has a value that differs from the result files, or has one twice."""
    true = {(it.key, it.step): it.value for it in entries.result_points(column, run)}
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
