"""One session of measurements: every case by every engine, taken in turns, with repeats."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from smallbatch.errors import WorkerLost
from smallbatch.placement.known import ways as ways_of
from smallbatch.placement.workload import Method, Workload
from smallbatch.speed.bench.images import Pictures
from smallbatch.speed.rate import measure

Contender = Literal["textbook", "loop", "stacked"]
ENGINES: tuple[Contender, ...] = ("textbook", "loop", "stacked")
GUESS_SECONDS = 0.5  # of the first look at a case, which settles how it is measured
EPOCHS = 4  # that a measurement aims at; the first is left out
MOST_IMAGES = 2**16  # of an epoch
LOADER_WORKERS = (0, 2)  # of the textbook script; the faster counts
EPOCH_BATCHES = 16  # of the textbook at least: its epochs must not be all ends

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
        pictures: the data sets.
        model: its name.
        norm: its normalisation.
        bn_batch_size: sub-batch of ghost batch norm.
        augment: crops and flips.
        batch_sizes: every m.
        lanes: runs of the column.
        engines: some of ENGINES.
        repeats: of every measurement.
        seconds: of one measurement, at least.
        device: ``cpu`` or ``cuda``.
        workers: processes of an engine.
    """

    pictures: Sequence[Pictures]
    model: str
    norm: str
    bn_batch_size: int | None
    augment: bool
    batch_sizes: Sequence[int]
    lanes: int
    engines: Sequence[Contender]
    repeats: int
    seconds: float
    device: str
    workers: int

    def case(self, pictures: Pictures, batch_size: int) -> Workload:
        """The column that is measured."""
        return Workload(
            model=self.model,
            norm=self.norm,
            bn_batch_size=self.bn_batch_size,
            augment=self.augment,
            precision="float32",
            channels=pictures.images.shape[1],
            size=pictures.images.shape[2],
            classes=pictures.classes,
            batch_size=batch_size,
            lanes=self.lanes,
            device=self.device,
            workers=self.workers,
        )


@dataclass
class Series:
    """One engine on one case.

    Attributes:
        pictures: the images.
        case: the column.
        engine: what computes it.
        settled: how, after a first look: the textbook's loader workers, the stacked engine's lanes
            in a chunk and what computes its convolutions on a GPU, updates in an epoch.
        looks: images per second of the ways that were tried and not taken.
        repeats: ``images_per_second`` and ``seconds`` of every measurement.
        failure: why there are none.
    """

    pictures: Pictures
    case: Workload
    engine: Contender
    settled: dict[str, Any] = field(default_factory=dict[str, Any])
    looks: dict[str, float] = field(default_factory=dict[str, float])
    repeats: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    failure: str | None = None

    @property
    def rate(self) -> float | None:
        """Median images per second."""
        rates = [repeat["images_per_second"] for repeat in self.repeats]
        return median(rates) if rates else None

    @property
    def way(self) -> Method:
        """How an engine of the package computes the column."""
        engine = "loop" if self.engine == "loop" else "stacked"
        return Method(engine, self.settled.get("lanes_at_a_time"), self.settled.get("kernels"))


@dataclass
class Session:
    """What a session measured; ``limits`` by name, a value for each repeat."""

    series: list[Series]
    limits: dict[str, list[float]]


def run(bench: Bench, folder: Path, say: Say, keep: Callable[[Session], object]) -> Session:
    """Measure everything.

    Args:
        bench: what.
        folder: for the textbook's data.
        say: told of every step.
        keep: given the session after every repeat, so that one cut short is not lost.
    """
    least = EPOCH_BATCHES * max(bench.batch_sizes)
    files = {id(pictures): _save(pictures, least, folder) for pictures in bench.pictures}
    series = [
        Series(pictures, bench.case(pictures, m), engine)
        for pictures in bench.pictures
        for m in bench.batch_sizes
        for engine in bench.engines
    ]
    session = Session(series, {})
    for one in series:
        say(f"first look: {_name(one)}")
        _try(one, lambda one=one: _settle(bench, one, files[id(one.pictures)]))
    for repeat in range(bench.repeats):
        for name, value in _script("machine.py", "--device", bench.device).items():
            session.limits.setdefault(name, []).append(value)
        for one in series:
            if one.failure is None:
                say(f"{repeat + 1}/{bench.repeats}: {_name(one)}")
                _try(one, lambda one=one: _repeat(bench, one, files[id(one.pictures)]))
        keep(session)
    return session


def _try(series: Series, call: Callable[[], None]) -> None:
    """Let a measurement fail without the others: a model too large for memory, say."""
    try:
        call()
    except (RuntimeError, MemoryError, WorkerLost) as error:
        series.failure = str(error).strip().splitlines()[-1]


def _settle(bench: Bench, series: Series, data: Path) -> None:
    """Choose how a series is measured, each possibility briefly tried."""
    if series.engine == "textbook":
        rates = {
            workers: _textbook(bench, series.case, data, workers, GUESS_SECONDS)
            for workers in LOADER_WORKERS
        }
        series.settled["loader_workers"] = max(rates, key=lambda n: rates[n]["images_per_second"])
        return
    case = series.case
    ways = ways_of(case, [series.way.engine])
    looks = {way: measure(case, way, seconds=GUESS_SECONDS) for way in ways}
    way = max(looks, key=lambda way: looks[way].images_per_second)
    look = looks.pop(way)
    series.looks = {other.key: rate.images_per_second for other, rate in looks.items()}
    images = look.images_per_second / look.live * bench.seconds / (EPOCHS - 1)
    updates = round(min(images, MOST_IMAGES) / case.batch_size)
    series.settled |= {"lanes_at_a_time": way.lanes, "updates_per_epoch": max(1, updates)}
    if way.kernels is not None:
        series.settled["kernels"] = way.kernels


def _repeat(bench: Bench, series: Series, data: Path) -> None:
    settled = series.settled
    if series.engine == "textbook":
        workers = settled["loader_workers"]
        repeat = _textbook(bench, series.case, data, workers, bench.seconds)
    else:
        updates = settled["updates_per_epoch"]
        rate = measure(
            series.case,
            series.way,
            seconds=bench.seconds,
            updates=updates,
            images=series.pictures.dataset,
        )
        repeat = asdict(rate)
    series.repeats.append(repeat)


def _textbook(
    bench: Bench, case: Workload, data: Path, loader_workers: int, seconds: float
) -> dict[str, float]:
    # Few updates at large m, where each takes long and none is unlike another.
    warm_up = 20 if bench.device == "cuda" else max(2, min(20, 512 // case.batch_size))
    words = [
        "--data", data, "--warm-up", warm_up, "--model", case.model, "--norm", case.norm,
        "--batch-size", case.batch_size, "--num-workers", loader_workers,
        "--device", bench.device, "--seconds", seconds,
        *(["--augment"] if case.augment else []),
        *(["--bn-batch-size", case.bn_batch_size] if case.bn_batch_size else []),
    ]  # fmt: skip
    done = _script("textbook.py", *map(str, words))
    return done | {"images_per_second": done["images"] / done["seconds"]}


def _script(file: str, *words: str) -> dict[str, float]:
    """Run a script in a process of its own and read its line of JSON.

    Raises:
        RuntimeError: it failed.
    """
    command = (sys.executable, "-P", str(Path(__file__).with_name(file)), *words)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{file} failed: {done.stderr}")
    return json.loads(done.stdout)


def _save(pictures: Pictures, least: int, folder: Path) -> Path:
    """Write the images for the textbook, repeated from the first where they are too few."""
    rows = np.arange(max(least, len(pictures.labels))) % len(pictures.labels)
    path = folder / f"{pictures.name}.npz"
    images = pictures.images[rows].transpose(0, 2, 3, 1)
    np.savez(path, images=images, labels=pictures.labels[rows])
    return path


def _name(series: Series) -> str:
    return f"{series.pictures.name} m={series.case.batch_size} {series.engine}"
