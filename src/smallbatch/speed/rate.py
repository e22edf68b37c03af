"""How fast a column trains: measured through `train_all`, as the pipeline would train it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.config.params import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.placement.rules import deal
from smallbatch.placement.workload import Method, Workload, noise
from smallbatch.protocol.run import Run

if TYPE_CHECKING:
    from smallbatch.execution.workers import Job

BASE_LR = 2.0**-30  # so small that no lane diverges, which would shrink the work
PATIENCE = 5, 10.0  # epochs and seconds of the runs that report, after which no others are expected


@dataclass(frozen=True)
class Rate:
    """Training images of all runs that trained side by side, and the seconds they took.

    Attributes:
        images_per_second: in sum over the runs, each over its own stretch of whole epochs.
        seconds: from the first end of an epoch to the last.
        live: runs that trained side by side.
    """

    images_per_second: float
    seconds: float
    live: int


def measure(
    case: Workload,
    way: Method,
    *,
    seconds: float,
    updates: int | None = None,
    images: Callable[[int], Dataset] | None = None,
    memory: int | None = None,
) -> Rate:
    """Train the column of a case for a while, and count its images.

    Each run's first epoch is left out, as building the models and everything that is done once
    falls into it; the rate is over whole epochs from there on.

    Args:
        case: the column.
        way: how it is computed.
        seconds: to measure for, at least; it ends with the next epoch of every run.
        updates: in an epoch; by default few, as for a first guess.
        images: makes a data set of so many training images and TEST_IMAGES test images; noise by
            default.
        memory: bytes for the lanes of all workers; by default a part of what is free.
    """
    from smallbatch.execution.workers import train_all

    n = case.batch_size * (updates or few_updates(case))
    dataset = (images or (lambda count: noise(case, count)))(n)
    runs = runs_of(case, case.settings(), dataset, BASE_LR)
    counter = _Counter(seconds, _side_by_side(case, way))
    with tempfile.TemporaryDirectory(prefix="smallbatch-") as folder:
        job = job_of(case, way, runs, dataset, Path(folder), memory)
        try:
            train_all(job, on_epoch=counter.run_epoch, on_done=_refuse_end)
        except _Enough:
            return counter.rate(n)
    raise RuntimeError(f"{case.key}: the runs ended before they could be measured")


def runs_of(case: Workload, settings: StudyConfig, dataset: Dataset, base_lr: float) -> list[Run]:
    """As many runs as the case has: two seeds, at multiples of a base learning rate."""
    return [
        Run(settings, dataset.meta.fingerprint, case.batch_size, base_lr * (1 + i // 2), i % 2)
        for i in range(case.lanes)
    ]


def job_of(
    case: Workload, way: Method, runs: list[Run], dataset: Dataset, folder: Path, memory: int | None
) -> Job:
    """The training of a case's runs in a way, nothing of which is to stay."""
    from smallbatch.execution.watch import Watch
    from smallbatch.execution.workers import Job
    from smallbatch.placement.placement import Placement
    from smallbatch.records.checkpoints import ChunkPlan

    return Job(
        column=runs,
        missing=runs,
        dataset=dataset,
        placement=Placement(case.device, way, case.workers, memory, made_by=""),
        work=folder,
        plan=ChunkPlan(folder),
        checkpoint_seconds=math.inf,
        watch=Watch(),
        beat=lambda: None,
    )


def few_updates(case: Workload) -> int:
    """Updates of a short epoch, in which its end still weighs little."""
    # On a GPU an update is cheap beside what the end of an epoch costs the host.
    return 8 + 512 // case.batch_size if case.device == "cuda" else 1 + 32 // case.batch_size


def _side_by_side(case: Workload, way: Method) -> int:
    """Runs that train at the same time, where memory is no limit."""
    if case.device == "cuda":
        return 1  # one process: whoever trains beside this run reports with it
    workers = min(case.workers, case.lanes)
    if way.engine == "loop":
        return workers
    chunks = deal(range(case.lanes), workers, way.lanes or case.lanes)
    return sum(len(chunk) for chunk in chunks[:workers])


class _Enough(Exception):  # noqa: N818 - no error: it ends a training that would not end
    pass


class _Counter:
    def __init__(self, seconds: float, expected: int) -> None:
        self.seconds, self.expected = seconds, expected
        self.ends: dict[str, list[float]] = {}

    def run_epoch(self, run: Run, _row: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.ends.setdefault(run.hash, []).append(now)
        start = next(iter(self.ends.values()))[0]
        # A worker that is slow to start is waited for; one that memory keeps idle never reports.
        least, wait = (2, self.seconds) if len(self.ends) >= self.expected else PATIENCE
        enough = now - start >= max(wait, self.seconds)
        if enough and min(map(len, self.ends.values())) >= least:
            raise _Enough

    def rate(self, n: int) -> Rate:
        rates = [n * (len(ends) - 1) / (ends[-1] - ends[0]) for ends in self.ends.values()]
        first = min(ends[0] for ends in self.ends.values())
        last = max(ends[-1] for ends in self.ends.values())
        return Rate(sum(rates), last - first, len(rates))


def _refuse_end(run: Run, outcome: str) -> None:
    raise RuntimeError(f"a run that is measured ended: {run.hash} {outcome}")
