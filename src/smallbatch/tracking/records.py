"""What the mirror knows of a column and its runs, from the trainer or from result files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from smallbatch.records import columns as results
from smallbatch.records.schema import METRICS, ColumnRecord, RunRecord, Timing
from smallbatch.records.system import SystemUse, read_system
from smallbatch.tracking import entries
from smallbatch.tracking.place import place_of

if TYPE_CHECKING:
    from pathlib import Path

    from smallbatch.data.prepared import Meta

MetricRow = Mapping[str, float]


@dataclass(frozen=True)
class ColumnInfo:
    """All runs of one study at one batch size, as far as known before the first update.

    Attributes:
        dataset: The name of the data set.
        fingerprint: The SHA-256 of the data set's content, in hex.
        study: The name of the study.
        batch_size: Examples per update, m.
        settings: Every field of the study's configuration.
        source: Where the data came from, such as `cifar10`; empty if unknown.
        stage: The DVC stage, `train@<study>-<m>`; None outside a pipeline.
        single: Outside a pipeline, the hash of the column's only run; else None.
        environment: The entries of `timing.json` on machine, versions, git and engine, as far as
            known.
        protocol: The version of the training protocol.
        place: The folder of its result files, as `place_of` tells it; empty if unknown.
        image_size: The side of the crops that a model sees, in pixels, of images that are kept
            encoded; None of those that are kept as pixels.
    """

    dataset: str
    fingerprint: str
    study: str
    batch_size: int
    settings: Mapping[str, Any]
    source: str = ""
    stage: str | None = None
    single: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    protocol: int = 1
    place: str = ""
    image_size: int | None = None

    @property
    def experiment(self) -> str:
        """The name of the MLflow experiment; there is one per data set and study."""
        return f"{self.dataset}/{self.study}"

    @property
    def key(self) -> str:
        """16 hex digits that identify the column.

        They depend on what its runs share, except `figure`, which is only a label. A single run
        outside a pipeline has a column of its own. Folders with other grids have the same key.
        """
        settings = {key: value for key, value in self.settings.items() if key != "figure"}
        shared = [self.dataset, self.fingerprint, self.study, self.batch_size, settings]
        return _digest([*shared, self.protocol, self.single])[:16]


@dataclass(frozen=True)
class RunInfo:
    """One run of a column.

    Attributes:
        run: The run's hash.
        base_lr: η̃; under AdamW η.
        seed: The seed of weights, order and augmentation.
        updates: The planned number of updates.
        bn_batch_size: The sub-batch of ghost batch norm.
    """

    run: str
    base_lr: float
    seed: int
    updates: int
    bn_batch_size: int | None = None


@dataclass(frozen=True)
class TrackedRun:
    """One run, read from its result files.

    Attributes:
        info: The run.
        record: Its entry in `runs.json`.
        rows: The numeric columns of `history.parquet`, one mapping per epoch, in order.
        reported_accuracy: As `reported_accuracies` has it; None for a diverged run.
        started_ms: The start, in milliseconds since 1970; 1 if `timing.json` does not have it.
        ended_ms: The end, likewise.
        environment: What of its environment is not that of all runs of the column.
    """

    info: RunInfo
    record: RunRecord
    rows: tuple[MetricRow, ...]
    reported_accuracy: float | None
    started_ms: int
    ended_ms: int
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the run's result, of what is reported of it, and of how it is logged."""
        content: list[Any] = [entries.LAYOUT, self.record.model_dump(), self.rows]
        return _digest([*content, self.reported_accuracy])

    def timestamps_ms(self, known: Mapping[int, int]) -> dict[int, int]:
        """When each epoch (1-based) ended, in milliseconds since 1970; never decreases.

        Args:
            known: The ends of epochs that were logged when they ended. The other epochs are taken
                to be equally long between these, the start and the end.
        """
        import numpy as np

        epochs = len(self.rows)
        fixed = {0: self.started_ms, epochs: self.ended_ms, **known}
        steps = sorted(fixed)
        moments = np.maximum.accumulate([fixed[step] for step in steps])
        found = np.interp(range(epochs + 1), steps, moments)
        return {step: round(moment) for step, moment in enumerate(found.tolist())}


@dataclass(frozen=True)
class Cell:
    """The runs of one η̃ (and one BN batch size) of a column.

    Attributes:
        base_lr: η̃; under AdamW η.
        runs: One per seed.
    """

    base_lr: float
    runs: tuple[TrackedRun, ...]

    @cached_property
    def _ranked(self) -> list[tuple[float, TrackedRun]]:
        # A diverged run ranks below every finished one, as in the analysis.
        scores = [-math.inf if run.reported_accuracy is None else run.reported_accuracy
                  for run in self.runs]  # fmt: skip
        return sorted(zip(scores, self.runs, strict=True), key=lambda it: (it[0], -it[1].info.seed))

    @property
    def accuracy(self) -> float | None:
        """The median over seeds of the reported accuracy; None if it falls on a diverged run."""
        found = median(score for score, _ in self._ranked)
        return found if math.isfinite(found) else None

    @property
    def median_run(self) -> TrackedRun:
        """The run with that accuracy; of an even number of seeds the better of the middle two."""
        return self._ranked[len(self.runs) // 2][1]


@dataclass(frozen=True)
class TrackedColumn:
    """One column, read from its directory.

    Attributes:
        info: The column.
        dataset: What is known of its data.
        directory: The directory.
        runs: Its runs in the order of `runs.json`.
        timing: The `column` entry of `timing.json`; empty if missing.
        weights_sha256: SHA-256 of its weights file, as `runs.json` has it; None in older files.
        system: Its `system.json`; None if missing.
    """

    info: ColumnInfo
    dataset: Meta
    directory: Path
    runs: tuple[TrackedRun, ...]
    timing: Mapping[str, Any]
    weights_sha256: str | None
    system: SystemUse | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the results of all runs."""
        return _digest(sorted(run.digest for run in self.runs))

    @property
    def started_ms(self) -> int:
        """Start of the column in milliseconds since 1970."""
        return _milliseconds(self.timing.get("started"))

    @property
    def ended_ms(self) -> int:
        """End of the column in milliseconds since 1970, not before that of its last run."""
        seconds = self.timing.get("seconds")
        took_ms = 0 if seconds is None else round(1000 * float(seconds))
        return max(self.started_ms + took_ms, *(run.ended_ms for run in self.runs))

    @cached_property
    def best_cell(self) -> Cell | None:
        """The cell with the highest accuracy; of equals that with the smallest η̃.

        It is the one that `best_cells` of the analysis picks on the test set.
        """
        cells: dict[tuple[float, int], list[TrackedRun]] = {}
        for run in self.runs:
            at = (run.info.base_lr, run.info.bn_batch_size or 0)
            cells.setdefault(at, []).append(run)
        found = [Cell(at[0], tuple(runs)) for at, runs in sorted(cells.items())]
        return max(
            (cell for cell in found if cell.accuracy is not None),
            key=lambda cell: cell.accuracy or 0.0,
            default=None,
        )

    @property
    def best(self) -> TrackedRun | None:
        """The run that stands for the best cell."""
        return self.best_cell.median_run if self.best_cell else None


def read_column(directory: Path) -> TrackedColumn:
    """Read a column from its result files.

    Raises:
        UserError: A file is missing or damaged.
    """
    files = results.read_column(directory)
    record, timing = files.record, files.timing
    accuracies = results.reported_accuracies(files.history).reset_index().set_index("run")
    rows: dict[str, list[MetricRow]] = {}
    names = ["run", "epoch", "updates", "lr", *METRICS]
    for row in files.history[names].sort_values("epoch").to_dict("records"):
        rows.setdefault(str(row.pop("run")), []).append(cast("MetricRow", row))
    runs: list[TrackedRun] = []
    for run in record.runs:
        clock = timing.runs.get(run.run)
        started_ms = _milliseconds(clock and clock.started)
        ended_ms = started_ms + round(1000 * clock.seconds) if clock else started_ms
        if clock and clock.ended:
            ended_ms = _milliseconds(clock.ended)
        accuracy = float(accuracies["reported_accuracy"][run.run])
        runs.append(
            TrackedRun(
                info=RunInfo(run.run, run.base_lr, run.seed, run.updates, run.bn_batch_size),
                record=run,
                rows=tuple(rows[run.run]),
                reported_accuracy=accuracy if math.isfinite(accuracy) else None,
                started_ms=started_ms,
                ended_ms=ended_ms,
                environment=clock.environment if clock else {},
            )
        )
    info = _column_info(record, timing, directory)
    return TrackedColumn(
        info, record.dataset, directory, tuple(runs), timing.column, record.weights_sha256,
        read_system(directory),
    )  # fmt: skip


def _column_info(record: ColumnRecord, timing: Timing, directory: Path) -> ColumnInfo:
    of_pipeline = (
        None if results.is_single(directory) else (f"train@{record.study}-{record.batch_size}")
    )
    stage = timing.column.get("stage", of_pipeline)
    return ColumnInfo(
        dataset=record.dataset.name,
        fingerprint=record.dataset.fingerprint,
        study=record.study,
        batch_size=record.batch_size,
        settings=record.settings,
        source=record.dataset.source,
        stage=stage,
        single=record.runs[0].run if stage is None else None,
        environment={**timing.environment, **timing.column},
        protocol=record.protocol,
        place=place_of(directory),
        image_size=side_of_crops(record.dataset),
    )


def side_of_crops(meta: Meta) -> int | None:
    """The `ColumnInfo.image_size` of a data set."""
    return None if meta.short_side is None else meta.height


def _milliseconds(moment: str | None) -> int:
    """Milliseconds since 1970; 1 if unknown, because MLflow reads 0 as "now"."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else 1


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
