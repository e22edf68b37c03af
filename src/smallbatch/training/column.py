"""One column: every base learning rate × seed of a study at one batch size (one DVC stage)."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, Protocol

from smallbatch.config import ComputeConfig, StudyConfig, format_base_lr
from smallbatch.errors import UserError
from smallbatch.training import environment, files
from smallbatch.training.protocol import Run, updates_after

if TYPE_CHECKING:
    from smallbatch.data.prepared import Dataset
    from smallbatch.training.loop import RunResult
    from smallbatch.training.resident import Resident

Row = dict[str, Any]
_PROCESSES = (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)


class Observer(Protocol):
    """Someone who watches a column train: a progress display, a tracking mirror."""

    def run_epoch(self, run: Run, row: Row) -> None:
        """An epoch of ``run`` ended with the history values ``row``."""
        ...

    def run_done(self, run: Run, outcome: str) -> None:
        """``run`` ended, or was found finished from an earlier attempt."""
        ...


@dataclass(frozen=True)
class Column:
    """What a column trains.

    Attributes:
        study: the study's name.
        dataset: the prepared data.
        runs: one per (η̃, seed), all of one batch size.
    """

    study: str
    dataset: Dataset
    runs: tuple[Run, ...]

    @property
    def batch_size(self) -> int:
        """M of every run."""
        return self.runs[0].batch_size

    def updates(self, run: Run) -> int:
        """Updates of a run that finishes."""
        n = self.dataset.meta.counts["train"]
        return updates_after(run.settings.epochs, n, run.batch_size)


def plan_column(
    study: str,
    settings: StudyConfig,
    dataset: Dataset,
    *,
    batch_size: int,
    base_lrs: Sequence[float],
    seeds: Sequence[int],
) -> Column:
    """List the runs of a column.

    Raises:
        UserError: the batch size exceeds the training set.
    """
    n = dataset.meta.counts["train"]
    if batch_size > n:
        raise UserError(
            f"batch size: found {batch_size}, allowed: at most the {n} training examples "
            f"of {dataset.meta.name}"
        )
    fingerprint = dataset.meta.fingerprint
    return Column(
        study,
        dataset,
        tuple(
            Run(settings, fingerprint, batch_size, base_lr, seed)
            for base_lr in base_lrs
            for seed in seeds
        ),
    )


def train_column(
    column: Column,
    directory: Path,
    *,
    compute: ComputeConfig,
    work: Path = Path(".smallbatch/work"),
    observers: Sequence[Observer] = (),
    stage: str | None = None,
) -> None:
    """Train what is missing of a column and write its result files to ``directory``.

    Args:
        column: the runs.
        directory: where `history.parquet`, `weights.safetensors`, `runs.json` and `timing.json` go.
        compute: device and worker processes. On the CPU independent runs go to several
            single-thread processes, by default one per core; a GPU trains them one after another.
        work: where finished runs are kept until, and after, their column is whole.
        observers: told of every epoch and every end.
        stage: the DVC stage this is, for the record.

    Raises:
        UserError: the device is not there.
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    device = resolve_device(compute.device)
    made_by = _made_by(device)
    done = {
        run.hash: kept
        for run in column.runs
        if (kept := files.load_record(work / run.hash, made_by)) is not None
    }
    for run in column.runs:
        if run.hash in done:
            _end(observers, run, done[run.hash][0].outcome)
    missing = [run for run in column.runs if run.hash not in done]
    workers = 1 if device == "cuda" else compute.workers
    workers = min(environment.cores() if workers == "auto" else workers, max(1, len(missing)))
    trained_images = 0
    if missing:
        job = _Job(column, device, work, made_by)
        for run in _train_all(job, missing, workers, observers):
            record = files.load_record(work / run.hash, made_by)
            if record is None:
                raise RuntimeError(f"the record of run {run.hash} in {work} vanished")
            done[run.hash] = record
            trained_images += record[1].images
    seconds = time.perf_counter() - clock
    timing = {
        "environment": environment.describe(device),
        "column": {
            "started": started.isoformat(timespec="seconds"),
            "seconds": seconds,
            "images_per_second": trained_images / seconds if trained_images else None,
            "workers": workers,
            "engine": "loop",
            "device": device,
            "stage": stage,
            "peak_memory_bytes": _peak_memory(device),
        },
        "runs": {run.hash: done[run.hash][1].as_json() for run in column.runs},
    }
    files.write_column(
        directory,
        dataset={**asdict(column.dataset.meta)},
        study=column.study,
        updates=column.updates(column.runs[0]),
        results=[(run, done[run.hash][0]) for run in column.runs],
        timing=timing,
    )


def resolve_device(choice: str) -> str:
    """``auto`` → ``cuda`` where there is one, else ``cpu``.

    Raises:
        UserError: ``cuda`` was asked for and is not there.
    """
    import torch

    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise UserError("device: found 'cuda', allowed here: cpu (torch sees no CUDA device)")
    return "cuda" if available and choice in ("auto", "cuda") else "cpu"


@dataclass(frozen=True)
class _Job:
    column: Column
    device: str
    work: Path
    made_by: str


def _made_by(device: str) -> str:
    import torch

    return f"{files.code_digest()} torch {torch.__version__} {device}"


def _train_all(
    job: _Job, runs: list[Run], workers: int, observers: Sequence[Observer]
) -> Iterator[Run]:
    """Train runs here (GPU) or in forked single-thread workers (CPU); yield each as it ends."""
    import torch

    if job.device == "cpu":
        # One thread per run whatever the machine: thread counts change float sums, and no OpenMP
        # pool may exist before the fork.
        torch.set_num_threads(1)
    data = _resident(job)
    if job.device == "cuda":
        torch.backends.cudnn.deterministic = True
        for run in runs:
            result = _train_one(job, data, run, lambda row, run=run: _tell(observers, run, row))
            _end(observers, run, result.outcome)
            yield run
        return
    yield from _fork(job, data, runs, workers, observers)


def _fork(
    job: _Job, data: Resident, runs: list[Run], workers: int, observers: Sequence[Observer]
) -> Iterator[Run]:
    # Forked children share the data set's pages and skip torch's import.
    context = multiprocessing.get_context("fork")
    tasks, events = context.SimpleQueue(), context.Queue()
    for i in [*range(len(runs)), *[None] * workers]:
        tasks.put(i)
    arguments = (job, data, runs, tasks, events, os.getpid())
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    remaining = len(runs)
    try:
        while remaining:
            try:
                kind, i, value = events.get(timeout=1.0)
            except Empty:
                dead = [p.exitcode for p in processes if p.exitcode]
                if dead:
                    raise RuntimeError(f"a training worker died with exit code {dead[0]}") from None
                continue
            if kind == "epoch":
                _tell(observers, runs[i], value)
            elif kind == "done":
                remaining -= 1
                _end(observers, runs[i], value)
                yield runs[i]
            else:
                raise RuntimeError(f"training {_title(runs[i])} failed:\n{value}")
    finally:
        for process in processes:
            process.terminate()  # idle by now, unless something went wrong
            process.join()


def _work(job: _Job, data: Resident, runs: list[Run], tasks: Any, events: Any, parent: int) -> None:
    def on_epoch(i: int, row: Row) -> None:
        if os.getppid() != parent:  # nobody is left to train for
            os._exit(1)
        events.put(("epoch", i, row))

    _keep_freed_memory()
    while (i := tasks.get()) is not None:
        try:
            result = _train_one(job, data, runs[i], lambda row, i=i: on_epoch(i, row))
            events.put(("done", i, result.outcome))
        except KeyboardInterrupt:
            return
        except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
            events.put(("failed", i, traceback.format_exc()))


def _keep_freed_memory() -> None:
    """Ask the C library to reuse large freed buffers instead of returning them to the system.

    Each update frees and takes the same activations; page faults on them cost up to half of the
    time at m ≥ 128. Without glibc nothing changes.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**30)
    except (OSError, AttributeError):
        return


def _train_one(job: _Job, data: Resident, run: Run, on_epoch: Callable[[Row], None]) -> RunResult:
    from smallbatch.training.loop import train

    started, clock = datetime.now(UTC), time.perf_counter()
    result = train(run, data, on_epoch=on_epoch)
    timing = files.Timing(
        started=started.isoformat(timespec="milliseconds"),
        seconds=time.perf_counter() - clock,
        images=result.rows[-1]["updates"] * run.batch_size,
    )
    files.save_record(job.work / run.hash, result, timing, job.made_by)
    return result


def _resident(job: _Job) -> Resident:
    import torch

    from smallbatch.training.resident import load_resident

    augment = job.column.runs[0].settings.augment
    return load_resident(job.column.dataset, augment=augment, device=torch.device(job.device))


def _tell(observers: Sequence[Observer], run: Run, row: Row) -> None:
    for observer in observers:
        observer.run_epoch(run, row)


def _end(observers: Sequence[Observer], run: Run, outcome: str) -> None:
    for observer in observers:
        observer.run_done(run, outcome)


def _title(run: Run) -> str:
    return f"m={run.batch_size} base_lr={format_base_lr(run.base_lr)} seed={run.seed}"


def _peak_memory(device: str) -> int:
    """Peak bytes: of the device on a GPU, of the largest worker process on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    usage = max(resource.getrusage(who).ru_maxrss for who in _PROCESSES)
    return usage * 1024
