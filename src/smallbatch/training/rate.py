"""How fast a column trains: measured through `train_all`, as the pipeline would train it."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smallbatch.config import StudyConfig
from smallbatch.data.prepared import Dataset, Meta
from smallbatch.training.engines import Engine, Kernels, deal
from smallbatch.training.protocol import Run

if TYPE_CHECKING:
    from smallbatch.training.workers import Job

ENDLESS = 10**6  # epochs: a measurement is stopped by the clock, long before a milestone
BASE_LR = 2.0**-30  # so small that no lane diverges, which would shrink the work
PATIENCE = 5, 10.0  # epochs and seconds of the runs that report, after which no others are expected
TEST_IMAGES = 2  # per epoch: evaluation is left out of the measured rate but for these


@dataclass(frozen=True)
class Case:
    """What decides how fast a column trains on a given machine.

    Attributes:
        model: its name.
        norm: its normalisation.
        bn_batch_size: sub-batch of ghost batch norm.
        augment: whether crops and flips are drawn.
        precision: of the arithmetic.
        channels: of an image.
        size: of an image in pixels, height and width.
        classes: outputs of the model.
        batch_size: m.
        lanes: runs of the column.
        device: ``cpu`` or ``cuda``.
        workers: processes.
    """

    model: str
    norm: str
    bn_batch_size: int | None
    augment: bool
    precision: str
    channels: int
    size: int
    classes: int
    batch_size: int
    lanes: int
    device: str
    workers: int

    @property
    def key(self) -> str:
        """The case as text."""
        norm = self.norm if self.bn_batch_size is None else f"{self.norm}{self.bn_batch_size}"
        augment = "augmented " if self.augment else ""
        return (
            f"{self.model} {norm} {self.precision} {augment}"
            f"{self.channels}x{self.size}x{self.size} {self.classes} classes m={self.batch_size} "
            f"{self.lanes} lanes {self.device} {self.workers} workers"
        )

    def at(self, batch_size: int) -> Case:
        """The same at another batch size."""
        return replace(self, batch_size=batch_size)

    def settings(self, epochs: int = ENDLESS) -> StudyConfig:
        """A study of this case; by default it never ends."""
        return StudyConfig.model_validate(
            {
                "model": self.model,
                "norm": self.norm,
                "bn_batch_size": self.bn_batch_size,
                "augment": self.augment,
                "precision": self.precision,
                "epochs": epochs,
                "weight_decay": 1e-4,
            }
        )


@dataclass(frozen=True)
class Way:
    """A way to compute a column.

    Attributes:
        engine: ``loop`` or ``stacked``.
        lanes: at most so many in one worker at a time; None: as many as its memory holds.
        kernels: what computes stacked lanes on a GPU; None on a CPU and for `loop`.
    """

    engine: Engine
    lanes: int | None = None
    kernels: Kernels | None = None

    @property
    def key(self) -> str:
        """The way as text."""
        by = "" if self.kernels is None else f" by {self.kernels} kernels"
        return f"{self.engine}{by}{'' if self.lanes is None else f' in chunks of {self.lanes}'}"


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
    case: Case,
    way: Way,
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
    from smallbatch.training.workers import train_all

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


def runs_of(case: Case, settings: StudyConfig, dataset: Dataset, base_lr: float) -> list[Run]:
    """As many runs as the case has: two seeds, at multiples of a base learning rate."""
    return [
        Run(settings, dataset.meta.fingerprint, case.batch_size, base_lr * (1 + i // 2), i % 2)
        for i in range(case.lanes)
    ]


def job_of(
    case: Case, way: Way, runs: list[Run], dataset: Dataset, folder: Path, memory: int | None
) -> Job:
    """The training of a case's runs in a way, nothing of which is to stay."""
    from smallbatch.training.checkpoints import Plan
    from smallbatch.training.watch import Watch
    from smallbatch.training.workers import Job

    return Job(
        column=runs,
        missing=runs,
        engine=way.engine,
        dataset=dataset,
        device=case.device,
        workers=min(case.workers, len(runs)),
        memory=memory,
        work=folder,
        made_by="",
        lanes=way.lanes,
        kernels=way.kernels,
        plan=Plan(folder),
        checkpoint_seconds=math.inf,
        watch=Watch(),
        beat=lambda: None,
    )


def few_updates(case: Case) -> int:
    """Updates of a short epoch, in which its end still weighs little."""
    # On a GPU an update is cheap beside what the end of an epoch costs the host.
    return 8 + 512 // case.batch_size if case.device == "cuda" else 1 + 32 // case.batch_size


def noise(case: Case, count: int) -> Dataset:
    """Random images in a case's shape: what a pixel holds does not change what it costs."""
    rng = np.random.default_rng(0)
    total = count + TEST_IMAGES
    images = rng.integers(0, 256, (total, case.channels, case.size, case.size), dtype=np.uint8)
    labels = rng.integers(0, case.classes, total)
    return as_dataset(images, labels, case.classes)


def as_dataset(images: Any, labels: Any, classes: int) -> Dataset:
    """A data set whose test split is the last TEST_IMAGES of ``images``, uint8 (N, C, H, W)."""
    channels, height, width = images.shape[1:]
    n = len(images) - TEST_IMAGES
    meta = Meta(
        name="measurement",
        source="noise",
        classes=tuple(str(i) for i in range(classes)),
        channels=channels,
        height=height,
        width=width,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        counts={"train": n, "validation": 0, "test": TEST_IMAGES},
        fingerprint="0" * 64,
    )
    return Dataset(meta, images[:n], labels[:n], images[n:], labels[n:])


def _side_by_side(case: Case, way: Way) -> int:
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
