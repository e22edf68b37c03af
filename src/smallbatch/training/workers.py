"""Trains independent runs: in forked single-thread workers on a CPU, one after another on a GPU."""

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
from smallbatch.training.loop import initial_model, train
from smallbatch.training.resident import load_resident

if TYPE_CHECKING:
    from smallbatch.data.prepared import Dataset
    from smallbatch.training.loop import RunResult
    from smallbatch.training.protocol import Run
    from smallbatch.training.resident import Resident

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Runs to train and what they share.

    Attributes:
        runs: the runs.
        dataset: the prepared data.
        device: ``cpu`` or ``cuda``.
        workers: processes on the CPU.
        work: where each run's record goes as it ends.
        made_by: the code and versions that the records depend on.
    """

    runs: Sequence[Run]
    dataset: Dataset
    device: str
    workers: int
    work: Path
    made_by: str


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
    if job.device == "cpu":
        _train_in_workers(job, data, on_epoch, on_done)
        return
    torch.backends.cudnn.deterministic = True
    for run in job.runs:
        result = _train_one(job, data, run, lambda row, run=run: on_epoch(run, row))
        on_done(run, result.outcome)


def _train_in_workers(
    job: Job,
    data: Resident,
    on_epoch: Callable[[Run, Row], None],
    on_done: Callable[[Run, str], None],
) -> None:
    # Forked children share the data set's pages and skip torch's import.
    context = multiprocessing.get_context("fork")
    taken, events = context.Value("l", 0), context.Queue()
    arguments = (job, data, taken, events, os.getpid())
    workers = [
        context.Process(target=_work, args=arguments, daemon=True) for _ in range(job.workers)
    ]
    for worker in workers:
        worker.start()
    try:
        for kind, i, value in _events(events, workers, ends=len(job.runs)):
            run = job.runs[i]
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


def _events(events: Any, workers: Sequence[Any], ends: int) -> Iterator[tuple[str, int, Any]]:
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


def _work(job: Job, data: Resident, taken: Any, events: Any, parent: int) -> None:
    def on_epoch(i: int, row: Row) -> None:
        if os.getppid() != parent:  # nobody is left to train for
            os._exit(1)
        events.put(("epoch", i, row))

    _keep_freed_memory()
    while True:
        with taken.get_lock():
            i, taken.value = taken.value, taken.value + 1
        if i >= len(job.runs):
            return
        try:
            result = _train_one(job, data, job.runs[i], lambda row, i=i: on_epoch(i, row))
            events.put(("done", i, result.outcome))
        except KeyboardInterrupt:
            return
        except UserError as error:
            events.put(("refused", i, str(error)))
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


def _train_one(job: Job, data: Resident, run: Run, on_epoch: Callable[[Row], None]) -> RunResult:
    started, clock = datetime.now(UTC), time.perf_counter()
    result = train(run, data, on_epoch=on_epoch)
    timing = files.Timing(
        started=started.isoformat(timespec="milliseconds"),
        seconds=time.perf_counter() - clock,
        images=result.rows[-1]["updates"] * run.batch_size,
    )
    files.save_record(job.work / run.hash, result, timing, job.made_by)
    return result
