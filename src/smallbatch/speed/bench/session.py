"""A session of measurements: each workload by each engine in turn, repeated several times."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smallbatch.errors import WorkerLost
from smallbatch.placement.known import methods as methods_of
from smallbatch.placement.workload import Method, Workload
from smallbatch.speed.bench.images import Pictures
from smallbatch.speed.bench.peers.task import most_parts
from smallbatch.speed.bench.plain import Plain
from smallbatch.speed.rate import BASE_LR, measure
from smallbatch.speed.share import LEAST, SLICE_S, CoreShare, taken

if TYPE_CHECKING:
    from smallbatch.config.study import Optimizer

Contender = Literal["textbook", "jax-scan", "jax-vmap", "jax-einsum", "loop", "stacked"]
JAX: tuple[Contender, ...] = ("jax-scan", "jax-vmap", "jax-einsum")
SCANS = ("jax-scan", "jax-scan-patches")  # ways of jax-scan to convolve; the faster is used
ENGINES: tuple[Contender, ...] = ("textbook", *JAX, "loop", "stacked")
GUESS_SECONDS = 0.5  # of a first short measurement, which decides how the others are made
EPOCHS = 4  # in a measurement, roughly; the first is left out
MOST_IMAGES = 2**16  # in an epoch
LOADER_WORKERS = (0, 2)  # of the textbook script; the faster number is used
EPOCH_BATCHES = 16  # fewest in an epoch of the textbook script, so that its end weighs little

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """The settings of a session.

    Attributes:
        pictures: The data sets.
        models: The names of the models.
        norm: Its normalisation.
        bn_batch_size: The sub-batch of ghost batch norm.
        augment: Whether to crop and flip.
        batch_sizes: Every m.
        lanes: The number of runs of a column.
        engines: Some of ENGINES.
        repeats: The number of repeats of every measurement.
        seconds: The shortest duration of a measurement.
        device: ``cpu`` or ``cuda``.
        workers: The number of an engine's processes.
        optimizers: The optimisers.
    """

    pictures: Sequence[Pictures]
    models: Sequence[str]
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
    optimizers: Sequence[Optimizer] = ("sgd",)

    def workload(
        self, pictures: Pictures, batch_size: int, model: str, optimizer: Optimizer = "sgd"
    ) -> Workload:
        """The workload of a model on a data set at a batch size, with an optimiser."""
        channels, height, width = pictures.images.shape[1:]
        return Workload(
            model=model,
            norm=self.norm,
            bn_batch_size=self.bn_batch_size,
            augment=self.augment,
            precision="float32",
            channels=channels,
            height=height,
            width=width,
            classes=pictures.classes,
            batch_size=batch_size,
            lanes=self.lanes,
            device=self.device,
            workers=self.workers,
            optimizer=optimizer,
        )


@dataclass
class Series:
    """The measurements of one engine on one workload.

    Attributes:
        pictures: The images.
        workload: The workload.
        engine: The engine.
        settled: What the first short measurements decided: the updates in an epoch, and for the
            textbook script its loader workers, or for the stacked engine its lanes in a chunk and,
            on a GPU, its kernels. For JAX its version, the updates in a compiled program, and the
            ``peer`` of ``peers/program.py`` and how many such programs share the lanes.
        looks: Images per second of the possibilities that were tried but not chosen.
        repeats: ``images_per_second``, ``seconds`` and ``share`` (:class:`~speed.share.CoreShare`)
            of every measurement.
        failure: Why there are no measurements.
    """

    pictures: Pictures
    workload: Workload
    engine: Contender
    settled: dict[str, Any] = field(default_factory=dict[str, Any])
    looks: dict[str, float] = field(default_factory=dict[str, float])
    repeats: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    failure: str | None = None

    @property
    def rate(self) -> float | None:
        """Median images per second of the undisturbed measurements; None if there is none."""
        rates = [it["images_per_second"] for it in self.repeats if it["share"] >= LEAST]
        return median(rates) if rates else None

    @property
    def rough(self) -> float | None:
        """Median images per second of all measurements, where each was disturbed."""
        rates = [it["images_per_second"] for it in self.repeats]
        return median(rates) if rates and self.rate is None else None

    @property
    def disturbed(self) -> int:
        """The number of measurements of which other programs took a part of the cores."""
        return sum(it["share"] < LEAST for it in self.repeats)

    @property
    def method(self) -> Method:
        """The method by which an engine of the package trains."""
        engine = "loop" if self.engine == "loop" else "stacked"
        return Method(engine, self.settled.get("lanes_at_a_time"), self.settled.get("kernels"))


@dataclass
class Session:
    """The measurements of a session.

    Attributes:
        series: Those of every engine on every workload.
        limits: For each name a value of each repeat in which it was not disturbed.
        repeats: The number of repeats so far.
    """

    series: list[Series]
    limits: dict[str, list[float]]
    repeats: int = 0


def run(bench: Bench, folder: Path, say: Say, keep: Callable[[Session], object]) -> Session:
    """Measure everything.

    Args:
        bench: The settings.
        folder: A folder for the data of the textbook script and of JAX.
        say: Is told of every step.
        keep: Is given the session after every repeat, so that an interrupted one is not lost.
    """
    least = EPOCH_BATCHES * max(bench.batch_sizes)
    files = {id(pictures): _save(pictures, least, folder) for pictures in bench.pictures}
    series = [
        Series(pictures, bench.workload(pictures, m, model, optimizer), engine)
        for pictures in bench.pictures
        for model in bench.models
        for m in bench.batch_sizes
        for optimizer in bench.optimizers
        for engine in bench.engines
    ]
    session = Session(series, {})
    with Plain("textbook") as textbook, Plain("jax") as jax:
        plains = {one.engine: jax if one.engine in JAX else textbook for one in series}
        for one in series:
            say(f"first look: {_name(one)}")
            data = files[id(one.pictures)]
            _try(one, partial(_settle, bench, one, data, plains[one.engine]))
        for repeat in range(bench.repeats):
            _measure_limits(bench, session.limits)
            for one in series:
                if one.failure is None:
                    say(f"{repeat + 1}/{bench.repeats}: {_name(one)}")
                    data, plain = files[id(one.pictures)], plains[one.engine]
                    _try(one, partial(_repeat, bench, one, data, plain))
                    if one.failure is None and (share := one.repeats[-1]["share"]) < LEAST:
                        say(f"{taken(share)}: this figure does not count")
            session.repeats += 1
            keep(session)
    return session


def _measure_limits(bench: Bench, limits: dict[str, list[float]]) -> None:
    cores = CoreShare()
    found = _script("machine.py", "--device", bench.device, meanwhile=cores.look)
    if cores.so_far() >= LEAST:
        for name, value in found.items():
            limits.setdefault(name, []).append(value)


def _try(series: Series, call: Callable[[], None]) -> None:
    """Let a measurement fail alone, for example if a model is too large for the memory."""
    try:
        call()
    except (RuntimeError, MemoryError, WorkerLost) as error:
        series.failure = str(error).strip().splitlines()[-1]


def _settle(bench: Bench, series: Series, data: Path, plain: Plain) -> None:
    """Choose how a series is measured, after trying each possibility for a short time."""
    if series.engine == "textbook":
        rates = {
            workers: plain.measure(_words(bench, series.workload, data, workers, GUESS_SECONDS))
            for workers in LOADER_WORKERS
        }
        series.settled["loader_workers"] = max(rates, key=lambda n: rates[n]["images_per_second"])
        return
    if series.engine in JAX:  # it compiles now what it keeps for the repeats
        tried = {
            way: plain.measure(_jax_words(bench, series.workload, data, *way, GUESS_SECONDS))
            for way in _jax_ways(bench, series.engine)
        }
        way = max(tried, key=lambda way: tried[way]["images_per_second"])
        series.settled |= {"peer": way[0], "programs": way[1]}
        series.settled |= {name: tried[way][name] for name in ("updates_per_call", "jax")}
        return
    workload = series.workload
    methods = methods_of(workload, [series.method.engine])
    looks = {method: measure(workload, method, seconds=GUESS_SECONDS) for method in methods}
    method = max(looks, key=lambda method: looks[method].images_per_second)
    look = looks.pop(method)
    series.looks = {
        other.key: rate.images_per_second for other, rate in looks.items() if not rate.disturbed
    }
    images = look.images_per_second / look.live * bench.seconds / (EPOCHS - 1)
    updates = round(min(images, MOST_IMAGES) / workload.batch_size)
    series.settled |= {"lanes_at_a_time": method.lanes, "updates_per_epoch": max(1, updates)}
    if method.kernels is not None:
        series.settled["kernels"] = method.kernels


def _repeat(bench: Bench, series: Series, data: Path, plain: Plain) -> None:
    settled = series.settled
    if series.engine == "textbook":
        workers = settled["loader_workers"]
        repeat = plain.measure(_words(bench, series.workload, data, workers, bench.seconds))
    elif series.engine in JAX:
        way = settled["peer"], settled["programs"]
        repeat = plain.measure(_jax_words(bench, series.workload, data, *way, bench.seconds))
        del repeat["jax"]  # its version, which `settled` has
    else:
        updates = settled["updates_per_epoch"]
        rate = measure(
            series.workload,
            series.method,
            seconds=bench.seconds,
            updates=updates,
            images=series.pictures.dataset,
        )
        repeat = asdict(rate)
    series.repeats.append(repeat)


def _words(
    bench: Bench, workload: Workload, data: Path, loader_workers: int, seconds: float
) -> list[object]:
    # A few updates are enough at large m, where each takes long and all take the same time.
    warm_up = 20 if bench.device == "cuda" else max(2, min(20, 512 // workload.batch_size))
    return [
        "--data", data, "--warm-up", warm_up, "--model", workload.model, "--norm", workload.norm,
        "--batch-size", workload.batch_size, "--num-workers", loader_workers,
        "--device", bench.device, "--seconds", seconds, "--optimizer", workload.optimizer,
        *(["--augment"] if workload.augment else []),
        *(["--bn-batch-size", workload.bn_batch_size] if workload.bn_batch_size else []),
    ]  # fmt: skip


def _jax_ways(bench: Bench, engine: Contender) -> list[tuple[str, int]]:
    """Peers of ``peers/program.py``, by one program and by as many as there are cores."""
    peers = SCANS if engine == "jax-scan" else (engine,)
    most = bench.workers if engine == "jax-scan" else most_parts(bench.lanes, bench.workers)
    return [(peer, programs) for peer in peers for programs in sorted({1, most})]


def _jax_words(
    bench: Bench, workload: Workload, data: Path, peer: str, programs: int, seconds: float
) -> list[object]:
    return [
        "--peer", peer, "--data", data, "--norm", workload.norm,
        "--batch-size", workload.batch_size,
        "--lanes", programs if peer in SCANS else workload.lanes, "--programs", programs,
        "--base-lr", BASE_LR, "--device", bench.device, "--seconds", seconds,
    ]  # fmt: skip


def _script(file: str, *words: str, meanwhile: Callable[[], object]) -> dict[str, float]:
    """Run a script in a process of its own and read the line of JSON that it prints.

    Args:
        file: Beside this module.
        words: Its arguments.
        meanwhile: Called every SLICE_S until it has ended.

    Raises:
        RuntimeError: The script failed.
    """
    command = (sys.executable, "-P", str(Path(__file__).with_name(file)), *words)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while True:
            try:
                out, said = process.communicate(timeout=SLICE_S)
                break
            except subprocess.TimeoutExpired:
                meanwhile()
            except BaseException:
                process.kill()
                raise
    if process.returncode:
        raise RuntimeError(f"{file} failed: {said}")
    return json.loads(out)


def _save(pictures: Pictures, least: int, folder: Path) -> Path:
    """Write the images for the scripts; repeats them if there are too few."""
    rows = np.arange(max(least, len(pictures.labels))) % len(pictures.labels)
    path = folder / f"{pictures.name}.npz"
    images = pictures.images[rows].transpose(0, 2, 3, 1)
    np.savez(path, images=images, labels=pictures.labels[rows])
    return path


def _name(series: Series) -> str:
    workload = series.workload
    optimizer = "" if workload.optimizer == "sgd" else f" {workload.optimizer}"
    what = f"{series.pictures.name} {workload.model} m={workload.batch_size}"
    return f"{what}{optimizer} {series.engine}"
