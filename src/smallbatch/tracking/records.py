"""What the mirror knows about a column and its runs, told live or read from result files."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from smallbatch.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

REPORTED_EPOCHS = 5
"""Epochs at the end of a run whose median test accuracy is reported (paper, section 5)."""

_ROW_NUMBERS = (
    "updates",
    "lr",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


@dataclass(frozen=True)
class ColumnInfo:
    """All runs of one study at one batch size, as far as known before the first update.

    Attributes:
        dataset: Name of the data set.
        fingerprint: SHA-256 of the data set's content, in hex.
        study: Name of the study.
        batch_size: Examples per update, m.
        settings: Every field of the study's configuration.
        source: Where the data came from, such as `cifar10`; empty when unknown.
        stage: The DVC stage, `train@<study>-<m>`; None outside a pipeline.
        environment: What `timing.json` says of machine, versions, git and engine, as known so far.
        protocol: Version of the training protocol.
    """

    dataset: str
    fingerprint: str
    study: str
    batch_size: int
    settings: Mapping[str, Any]
    source: str = ""
    stage: str | None = None
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    protocol: int = 1

    @property
    def experiment(self) -> str:
        """Name of the MLflow experiment: one per data set and study."""
        return f"{self.dataset}/{self.study}"

    @property
    def key(self) -> str:
        """16 hex digits that name the column: what its runs share, without base_lr and seed."""
        identity = [
            self.dataset,
            self.fingerprint,
            self.study,
            self.batch_size,
            self.settings,
            self.protocol,
        ]
        return _digest(identity)[:16]


@dataclass(frozen=True)
class RunInfo:
    """One run of a column.

    Attributes:
        run: The run's hash.
        base_lr: η̃.
        seed: Seed of weights, order and augmentation.
        updates: Planned number of updates.
    """

    run: str
    base_lr: float
    seed: int
    updates: int


@dataclass(frozen=True)
class RunResult:
    """One run as its result files tell it.

    Attributes:
        info: The run.
        outcome: `finished` or `diverged`.
        diverged_at: Update (1-based) at which the run diverged.
        parameters: Number of model parameters.
        final: Losses and accuracies in evaluation mode after the last update; None where absent.
        rows: One mapping per epoch, in order, with the numeric columns of `history.parquet`.
        digest: SHA-256 of all the above: changes when, and only when, the result changes.
        started_ms: Start in milliseconds since 1970; 1 when `timing.json` does not tell.
        seconds: Duration.
    """

    info: RunInfo
    outcome: str
    diverged_at: int | None
    parameters: int | None
    final: Mapping[str, float | None]
    rows: tuple[Mapping[str, float], ...]
    digest: str
    started_ms: int
    seconds: float

    def timestamp_ms(self, epoch: int) -> int:
        """The moment at which `epoch` (1-based) ended, epochs taken as equally long."""
        share = epoch / max(len(self.rows), 1)
        return self.started_ms + round(1000 * self.seconds * min(share, 1.0))

    @property
    def reported_accuracy(self) -> float | None:
        """Median test accuracy over the last five epochs; None if diverged or not evaluated."""
        if self.outcome != "finished":
            return None
        last = [row["test_accuracy"] for row in self.rows[-REPORTED_EPOCHS:]]
        return float(median(last)) if last and all(map(math.isfinite, last)) else None


@dataclass(frozen=True)
class ColumnResult:
    """One column directory, read.

    Attributes:
        info: The column.
        directory: Where it lies.
        runs: Its runs in the order of `runs.json`.
        timing: The `column` part of `timing.json`; empty when missing.
        digest: Changes when any run's result does.
    """

    info: ColumnInfo
    directory: Path
    runs: tuple[RunResult, ...]
    timing: Mapping[str, Any]
    digest: str

    @property
    def started_ms(self) -> int:
        """Start of the column in milliseconds since 1970."""
        return _milliseconds(self.timing.get("started"))

    @property
    def ended_ms(self) -> int:
        """End of the column in milliseconds since 1970."""
        return self.started_ms + round(1000 * float(self.timing.get("seconds") or 0.0))

    @property
    def best(self) -> RunResult | None:
        """The run of highest reported accuracy; of equals the smallest base_lr, then seed."""
        candidates = [(run.reported_accuracy, run) for run in self.runs]
        scored = [(score, run) for score, run in candidates if score is not None]
        if not scored:
            return None
        return min(scored, key=lambda it: (-it[0], it[1].info.base_lr, it[1].info.seed))[1]


def find_columns(paths: Path | Iterable[Path]) -> list[Path]:
    """Directories holding a `runs.json`, at or below `paths`, sorted, each once.

    Raises:
        UserError: A path is no directory.
    """
    found: set[Path] = set()
    for path in [paths] if isinstance(paths, Path) else paths:
        if not path.is_dir():
            raise UserError(f"{path}: not a directory; expected models/ or a column below it")
        found.update(file.parent for file in path.rglob("runs.json"))
    return sorted(found)


def read_column(directory: Path) -> ColumnResult:
    """Reads a column's `runs.json`, `history.parquet` and, if there, `timing.json`.

    Raises:
        UserError: A file is missing, unreadable or lacks a key.
    """
    path = directory / "runs.json"
    document = read_json(path)
    timing: dict[str, Any] = {}
    if (directory / "timing.json").exists():
        timing = read_json(directory / "timing.json")
    try:
        rows = _rows_by_run(directory / "history.parquet")
        info = _column_info(document, timing)
        clock: Mapping[str, Any] = timing.get("runs", {})
        runs = tuple(
            _run_result(entry, rows.get(entry["run"], ()), clock.get(entry["run"], {}))
            for entry in document["runs"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a column's result ({found})") from error
    digest = _digest(sorted(run.digest for run in runs))
    return ColumnResult(info, directory, runs, timing.get("column", {}), digest)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: The file is unreadable or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: found a {type(document).__name__}, expected an object")
    return document  # pyright: ignore[reportUnknownVariableType]


def _column_info(document: Mapping[str, Any], timing: Mapping[str, Any]) -> ColumnInfo:
    dataset = document["dataset"]
    study, batch_size = str(document["study"]), int(document["batch_size"])
    column = timing.get("column", {})
    return ColumnInfo(
        dataset=str(dataset["name"]),
        fingerprint=str(dataset["fingerprint"]),
        study=study,
        batch_size=batch_size,
        settings=document["settings"],
        source=str(dataset.get("source", "")),
        stage=column.get("stage", f"train@{study}-{batch_size}"),
        environment={**timing.get("environment", {}), **column},
        protocol=int(document.get("protocol", 1)),
    )


def _run_result(
    entry: Mapping[str, Any], rows: tuple[Mapping[str, float], ...], clock: Mapping[str, Any]
) -> RunResult:
    info = RunInfo(
        run=str(entry["run"]),
        base_lr=float(entry["base_lr"]),
        seed=int(entry["seed"]),
        updates=int(entry["updates"]),
    )
    return RunResult(
        info=info,
        outcome=str(entry["outcome"]),
        diverged_at=entry.get("diverged_at"),
        parameters=entry.get("parameters"),
        final=entry.get("final") or {},
        rows=rows,
        digest=_digest([entry, rows]),
        started_ms=_milliseconds(clock.get("started")),
        seconds=float(clock.get("seconds") or 0.0),
    )


def _rows_by_run(path: Path) -> dict[str, tuple[Mapping[str, float], ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["run", "epoch", *_ROW_NUMBERS])
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: not readable as a history ({error})") from error
    rows: dict[str, list[dict[str, float]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row.pop("run"), []).append(row)
    return {run: tuple(sorted(own, key=lambda row: row["epoch"])) for run, own in rows.items()}


def _milliseconds(moment: str | None) -> int:
    """Milliseconds since 1970; 1 when unknown, because MLflow reads 0 as "now"."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else 1


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()
