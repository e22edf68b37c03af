"""Trains a column's runs: in forked single-thread workers on a CPU, one after another on a GPU."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import torch

from smallbatch.config import format_base_lr
from smallbatch.errors import UserError
from smallbatch.training import files
from smallbatch.training.engines import MEMORY_SHARE, Engine, deal, free_memory
from smallbatch.training.loop import initial_model, train
from smallbatch.training.resident import load_resident
from smallbatch.training.stacked import lane_bytes, train_lanes

if TYPE_CHECKING:
    from smallbatch.config import StudyConfig
    from smallbatch.data.prepared import Dataset
    from smallbatch.training.loop import RunResult
    from smallbatch.training.protocol import Run
    from smallbatch.training.resident import Resident

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Runs to train and what they share.

    Attributes:
        runs: the runs, in order of learning rate.
        engine: ``loop`` or ``stacked``.
        dataset: the prepared data.
        device: ``cpu`` or ``cuda``.
        workers: processes on the CPU.
        memory: bytes for the lanes of all workers, or None for a part of what is free.
        lanes: at most so many in one worker at a time, whatever its memory; None: no such limit.
        work: where each run's record goes as it ends.
        made_by: the code and versions that the records depend on.
    """

    runs: Sequence[Run]
    engine: Engine
    dataset: Dataset
    device: str
    workers: int
    memory: int | None
    work: Path
    made_by: str
    lanes: int | None = None


def train_all(
    job: Job, on_epoch: Callable[[Run, Row], None], on_done: Callable[[Run, str], None]
) -> None:
    """Train every run and keep its record; the callbacks are called in this process.

    Raises:
        UserError: the model cannot be built for these images.
        RuntimeError: a run failed, or a worker died.
    """
    if job.device == "cpu":
        # One thread per run whatever the machine: thread counts change float sums, and no OpenMP
        # pool may exist before the fork.
        torch.set_num_threads(1)
    augment = job.runs[0].settings.augment
    data = load_resident(job.dataset, augment=augment, device=torch.device(job.device))
    initial_model(job.runs[0], data)  # so that a model which does not fit fails here, once
    chunks = _chunks(job, data)
    if job.device == "cpu":
        _train_in_workers(job, data, chunks, on_epoch, on_done)
        return
    torch.backends.cudnn.deterministic = True
    for chunk in chunks:
        _train_chunk(job, data, chunk, on_epoch, on_done)


def _chunks(job: Job, data: Resident) -> list[list[Run]]:
    """Groups of runs that are computed together, as many lanes as a worker's memory holds.

    Lanes share their settings, so each BN batch size has lanes of its own.
    """
    if job.engine == "loop":
        return [[run] for run in job.runs]
    if job.memory is not None:
        memory = job.memory
    elif job.device == "cuda":
        memory = int(MEMORY_SHARE * torch.cuda.mem_get_info()[0])
    else:
        memory = int(MEMORY_SHARE * free_memory())
    lanes = memory // job.workers // lane_bytes(job.runs[0], data)
    most = max(1, min(lanes, job.lanes or lanes))
    groups: dict[StudyConfig, list[Run]] = {}
    for run in job.runs:
        groups.setdefault(run.settings, []).append(run)
    return [chunk for runs in groups.values() for chunk in deal(runs, job.workers, most)]


def _train_in_workers(
    job: Job,
    data: Resident,
    chunks: Sequence[Sequence[Run]],
    on_epoch: Callable[[Run, Row], None],
    on_done: Callable[[Run, str], None],
) -> None:
    # Forked children share the data set's pages and skip torch's import.
    context = multiprocessing.get_context("fork")
    taken, events = context.Value("l", 0), context.Queue()
    arguments = (job, data, chunks, taken, events, os.getpid())
    workers = [
        context.Process(target=_work, args=arguments, daemon=True) for _ in range(job.workers)
    ]
    for worker in workers:
        worker.start()
    runs = {run.hash: run for run in job.runs}
    try:
        for kind, name, value in _events(events, workers, ends=len(runs)):
            run = runs[name]
            if kind == "epoch":
                on_epoch(run, value)
            elif kind == "done":
                on_done(run, value)
            elif kind == "refused":
                raise UserError(value)
            else:
                title = f"base_lr={format_base_lr(run.base_lr)} seed={run.seed}"
                raise RuntimeError(f"training m={run.batch_size} {title} failed:\n{value}")
    finally:
        for worker in workers:
            worker.terminate()  # idle by now, unless something went wrong
            worker.join()


def _events(events: Any, workers: Sequence[Any], ends: int) -> Iterator[tuple[str, str, Any]]:
    """What the workers say, until ``ends`` runs have ended.

    Raises:
        RuntimeError: workers died before that.
    """
    while ends:
        alive = any(worker.is_alive() for worker in workers)
        failed = [worker.exitcode for worker in workers if worker.exitcode]
        try:
            event = events.get(timeout=1.0)
        except Empty:
            if failed or not alive:
                code = failed[0] if failed else 0
                raise RuntimeError(f"a training worker died with exit code {code}") from None
            continue
        ends -= event[0] == "done"
        yield event


def _work(
    job: Job,
    data: Resident,
    chunks: Sequence[Sequence[Run]],
    taken: Any,
    events: Any,
    parent: int,
) -> None:
    def on_epoch(run: Run, row: Row) -> None:
        if os.getppid() != parent:  # nobody is left to train for
            os._exit(1)
        events.put(("epoch", run.hash, row))

    def on_done(run: Run, outcome: str) -> None:
        events.put(("done", run.hash, outcome))

    _keep_freed_memory()
    while True:
        with taken.get_lock():
            i, taken.value = taken.value, taken.value + 1
        if i >= len(chunks):
            return
        chunk = chunks[i]
        try:
            _train_chunk(job, data, chunk, on_epoch, on_done)
        except KeyboardInterrupt:
            return
        except UserError as error:
            events.put(("refused", chunk[0].hash, str(error)))
        except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
            events.put(("failed", chunk[0].hash, traceback.format_exc()))


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


def _train_chunk(
    job: Job,
    data: Resident,
    runs: Sequence[Run],
    on_epoch: Callable[[Run, Row], None],
    on_done: Callable[[Run, str], None],
) -> None:
    """Train runs that are computed together, and keep each one's record as it ends."""
    started, clock = datetime.now(UTC), time.perf_counter()

    def keep(run: Run, result: RunResult, seconds: float) -> None:
        timing = files.Timing(
            started=started.isoformat(timespec="milliseconds"),
            seconds=seconds,
            images=result.rows[-1]["updates"] * run.batch_size,
        )
        files.save_record(job.work / run.hash, result, timing, job.made_by)
        on_done(run, result.outcome)

    if job.engine == "stacked":
        train_lanes(runs, data, on_epoch=on_epoch, on_end=keep)
        return
    for run in runs:
        result = train(run, data, on_epoch=lambda row, run=run: on_epoch(run, row))
        keep(run, result, time.perf_counter() - clock)
        started, clock = datetime.now(UTC), time.perf_counter()
