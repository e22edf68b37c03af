"""How fast a column trains, measured by training it with `train_all`, as the pipeline does."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.placement.rules import deal
from smallbatch.placement.workload import Method, Workload, noise
from smallbatch.protocol.run import Run
from smallbatch.speed.share import LEAST, CoreShare

if TYPE_CHECKING:
    from smallbatch.execution.chunks import Job

BASE_LR = 2.0**-30  # so small that no lane diverges, as the others would then be faster
PATIENCE = 5, 10.0  # epochs and seconds after which runs that have not reported are not waited for


@dataclass(frozen=True)
class Rate:
    """The speed of the runs that train side by side.

    Attributes:
        images_per_second: Training images per second, in sum over the runs; for each run over the
            time of its whole epochs.
        seconds: Seconds from the first end of an epoch to the last.
        live: The number of runs that trained side by side.
        share: Of the cores that it could have used; see :class:`~speed.share.CoreShare`.
    """

    images_per_second: float
    seconds: float
    live: int
    share: float = 1.0

    @property
    def disturbed(self) -> bool:
        """Whether other programs took so much of the cores that the speed is not to be kept."""
        return self.share < LEAST


def measure(
    workload: Workload,
    method: Method,
    *,
    seconds: float,
    updates: int | None = None,
    images: Callable[[int], Dataset] | None = None,
    memory: int | None = None,
) -> Rate:
    """Train a column of a workload for a while, and count its images.

    The first epoch of each run is left out, because models are built and other things done once in
    it. The rate is over the whole epochs after it.

    Args:
        workload: The workload.
        method: The method.
        seconds: Seconds to measure, at least; ends when every run completes its epoch.
        updates: Updates in an epoch; by default few.
        images: Makes a data set with this number of training images and TEST_IMAGES test images;
            by default of noise.
        memory: Bytes for the lanes of all workers; by default a fraction of the free memory.
    """
    from smallbatch.execution.workers import train_all

    n = workload.batch_size * (updates or few_updates(workload))
    dataset = (images or (lambda count: noise(workload, count)))(n)
    runs = runs_of(workload, workload.settings(), dataset, BASE_LR)
    others = psutil.Process().children()  # such as the one that writes to MLflow
    with tempfile.TemporaryDirectory(prefix="smallbatch-") as folder:
        job = job_of(workload, method, runs, dataset, Path(folder), memory)
        side = _side_by_side(workload, job)
        counter = _Counter(seconds, side, lambda: CoreShare(side.workers, without=others))
        try:
            train_all(job, on_epoch=counter.run_epoch, on_done=_refuse_end)
        except _Enough:
            return counter.rate(n)
    raise RuntimeError(f"{workload.key}: the runs ended before they could be measured")


def runs_of(
    workload: Workload, settings: StudyConfig, dataset: Dataset, base_lr: float
) -> list[Run]:
    """The runs of a workload: two seeds, at multiples of a base learning rate."""
    return [
        Run(settings, dataset.meta.fingerprint, workload.batch_size, base_lr * (1 + i // 2), i % 2)
        for i in range(workload.lanes)
    ]


def job_of(
    workload: Workload,
    method: Method,
    runs: list[Run],
    dataset: Dataset,
    folder: Path,
    memory: int | None,
) -> Job:
    """A job that trains a workload's runs by a method; none of its files are kept."""
    from smallbatch.engines.made_by import native_version
    from smallbatch.execution.chunks import Job
    from smallbatch.execution.watch import Watch
    from smallbatch.placement.placement import Placement
    from smallbatch.records.checkpoints import ChunkPlan

    device, workers = workload.device, workload.workers
    native = native_version(method.engine, device, runs[0].settings, method.kernels)
    return Job(
        column=runs,
        missing=runs,
        dataset=dataset,
        placement=Placement(device, method, workers, memory, made_by="", native=native),
        work=folder,
        environment={},
        plan=ChunkPlan(folder),
        checkpoint_seconds=math.inf,
        watch=Watch(),
        beat=lambda: None,
    )


def few_updates(workload: Workload) -> int:
    """The number of updates of an epoch that is short, but whose end takes little of the time."""
    # On a GPU the end of an epoch takes as long as many updates.
    return (
        8 + 512 // workload.batch_size
        if workload.device == "cuda"
        else 1 + 32 // workload.batch_size
    )


class _SideBySide(NamedTuple):
    """What trains at the same time.

    Attributes:
        workers: Those that get a chunk.
        runs: The runs that they train at the same time.
        to_the_end: Whether these are all, so that nothing follows a chunk that ends early.
    """

    workers: int
    runs: int
    to_the_end: bool = False


def _side_by_side(workload: Workload, job: Job) -> _SideBySide:
    """What trains at the same time if memory is no limit."""
    if workload.device == "cuda":
        # There is one process: all runs that train beside the first one report with it.
        return _SideBySide(job.workers, 1)
    if job.placement.engine == "loop":
        return _SideBySide(job.workers, job.workers)
    import torch

    from smallbatch.engines.resident import load_resident

    torch.set_num_threads(1)  # no OpenMP pool may exist before workers are forked
    data = load_resident(noise(workload, 1), augment=False, device=torch.device("cpu"))
    vector = job.placement.vector_of(job.missing[0], data)
    at_most = job.placement.method.lanes or workload.lanes
    chunks = deal(job.missing, job.workers, at_most, vector)
    first = chunks[: job.workers]
    return _SideBySide(len(first), sum(map(len, first)), len(first) == len(chunks))


class _Enough(Exception):  # noqa: N818 - no error: it ends a training that would not end
    pass


class _Counter:
    def __init__(self, seconds: float, side: _SideBySide, cores: Callable[[], CoreShare]) -> None:
        self.seconds, self.side, self.begin = seconds, side, cores
        self.ends: dict[str, list[float]] = {}
        self.cores: CoreShare | None = None
        self.share = 1.0

    def run_epoch(self, run: Run, _row: dict[str, Any]) -> None:
        self.cores = self.cores or self.begin()
        self.cores.look()
        now = time.perf_counter()
        self.ends.setdefault(run.hash, []).append(now)
        start = next(iter(self.ends.values()))[0]
        # Wait for workers that start slowly, but not for ever: with little memory some never start.
        least, wait = (2, self.seconds) if len(self.ends) >= self.side.runs else PATIENCE
        enough = now - start >= max(wait, self.seconds)
        if enough and min(map(len, self.ends.values())) >= least:
            self.share = self.cores.so_far()
            raise _Enough

    def rate(self, n: int) -> Rate:
        rates = [n * (len(ends) - 1) / (ends[-1] - ends[0]) for ends in self.ends.values()]
        first = min(ends[0] for ends in self.ends.values())
        last = max(ends[-1] for ends in self.ends.values())
        # A column takes as long as its slowest chunk, and one may have more vectors than another.
        total = len(rates) * min(rates) if self.side.to_the_end else sum(rates)
        return Rate(total, last - first, len(rates), self.share)


def _refuse_end(run: Run, outcome: str) -> None:
    raise RuntimeError(f"a run that is measured ended: {run.hash} {outcome}")
