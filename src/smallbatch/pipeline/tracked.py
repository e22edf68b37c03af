"""Trains a column, shows it on the terminal and mirrors it to MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.config.params import ComputeConfig

if TYPE_CHECKING:
    from datetime import datetime

    from smallbatch.execution.watch import Watch
    from smallbatch.pipeline.progress import Progress
    from smallbatch.pipeline.run_progress import RunProgress
    from smallbatch.placement.placement import Placement
    from smallbatch.protocol.column import Column
    from smallbatch.protocol.run import Run
    from smallbatch.tracking import ColumnInfo, LiveMirror
    from smallbatch.tracking.live import Teller


def train_and_track(
    plan: Callable[[], Column],
    compute: ComputeConfig,
    folder: Callable[[Column], Path],
    *,
    stage: str | None,
    time_limit: float | None,
    elsewhere: Callable[[LiveMirror, Watch], str] | None = None,
) -> Path:
    """Place a column, train it and mirror it to MLflow while it trains.

    Args:
        plan: Makes the column; called when signals are already handled.
        compute: The `compute` settings of the params file.
        folder: Gives the folder for the column's files.
        stage: The name of the DVC stage; None outside the pipeline.
        time_limit: Seconds after which to stop, with all progress kept.
        elsewhere: Has the runs trained by others, waits for them, and tells by whom; then none are
            trained here.

    Returns:
        The folder.

    Raises:
        UserError: ``plan`` raised it, the tracking URI is none that can be used, the device does
            not exist, or the model cannot be built.
        Stopped: By a signal or before the time limit.
    """
    from smallbatch.execution.watch import Watch

    with Watch(time_limit) as watch:
        return _watched(plan, compute, folder, stage, watch, elsewhere)


def _watched(
    plan: Callable[[], Column],
    compute: ComputeConfig,
    folder: Callable[[Column], Path],
    stage: str | None,
    watch: Watch,
    elsewhere: Callable[[LiveMirror, Watch], str] | None,
) -> Path:
    from smallbatch.tracking import LiveMirror
    from smallbatch.tracking.uri import VARIABLE, TrackingUri

    if os.environ.get(VARIABLE):
        TrackingUri.parse()  # so that a mistake in it is told now and not after the training
    trained = ""
    mirror = LiveMirror()  # before torch is imported, as its process imports mlflow meanwhile
    try:
        if elsewhere is not None:
            trained = elsewhere(mirror, watch)
            compute = compute.model_copy(update={"device": "auto"})  # there may be no such here
        from smallbatch import machine
        from smallbatch.execution.column import train_column
        from smallbatch.placement.placement import place
        from smallbatch.speed.calibration import find_out

        column = plan()
        directory = folder(column)
        here = elsewhere is None
        if here:
            find_out(column, compute, lambda: mirror.rest(watch.stopping))
        placement = place(column, compute, keep=here, here=here)
        environment = machine.describe(placement.device)
        mirror.start(column_info(column, directory, placement, environment, stage))
        with _progress(column, trained, single=stage is None) as progress:
            observers = [progress, Tracked(mirror, column)]
            train_column(
                column,
                directory,
                placement=placement,
                checkpoint_seconds=compute.checkpoint_seconds,
                observers=observers,
                stage=stage,
                environment=environment,
                watch=watch,
                kept_only=elsewhere is not None,
            )
    except BaseException:
        mirror.abort()
        raise
    mirror.finish(directory, timeout_s=min(60.0, watch.left))
    watch.check()
    return directory


def _progress(column: Column, trained: str, *, single: bool) -> Progress | RunProgress:
    from smallbatch.pipeline.progress import Progress
    from smallbatch.pipeline.run_progress import RunProgress

    title = f"{column.dataset.meta.name}/{column.study} m={column.batch_size}"
    epochs, images = column.runs[0].settings.epochs, column.dataset.meta.counts["train"]
    if single:
        return RunProgress(title, epochs, images, trained=trained)
    return Progress(title, len(column.runs), epochs, images, trained=trained)


def column_info(
    column: Column,
    directory: Path,
    placement: Placement,
    environment: dict[str, Any],
    stage: str | None,
) -> ColumnInfo:
    """What MLflow is told of a column before its first update."""
    from smallbatch.protocol.run import PROTOCOL
    from smallbatch.records import files
    from smallbatch.tracking import ColumnInfo
    from smallbatch.tracking.place import place_of
    from smallbatch.tracking.records import side_of_crops

    meta = column.dataset.meta
    return ColumnInfo(
        dataset=meta.name,
        fingerprint=meta.fingerprint,
        study=column.study,
        batch_size=column.batch_size,
        settings=files.recorded_settings(column.runs[0]),
        source=meta.source,
        stage=stage,
        single=column.runs[0].hash if stage is None else None,
        environment={**environment, "device": placement.device, "engine": placement.engine},
        protocol=PROTOCOL,
        place=place_of(directory),
        image_size=side_of_crops(meta),
    )


class Tracked:
    """Tells MLflow of a column's epochs; see :class:`~execution.column.Observer`.

    Args:
        mirror: Who is told.
        column: The column.
    """

    def __init__(self, mirror: Teller, column: Column) -> None:
        from smallbatch.tracking import RunInfo

        self._mirror = mirror
        self._infos = {
            run.hash: RunInfo(
                run.hash,
                run.base_lr,
                run.seed,
                column.updates(run),
                run.settings.bn_batch_size,
            )
            for run in column.runs
        }

    def run_begun(self, run: Run, started: datetime) -> None:
        """See :class:`~execution.column.Observer`."""
        self._mirror.run_begun(run.hash, started)

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        """See :class:`~execution.column.Observer`."""
        self._mirror.run_epoch(self._infos[run.hash], row)

    def run_done(self, run: Run, outcome: str) -> None:
        """Do nothing: MLflow gets the outcome from the result files."""
