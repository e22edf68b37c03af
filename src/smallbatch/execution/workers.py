"""Trains a column's runs chunk by chunk, on a CPU in forked single-thread workers.

A chunk is a group of runs that are computed together; each chunk has its own checkpoints.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from smallbatch.config.base_lr import format_base_lr
from smallbatch.engines.lanes import lane_bytes, train_lanes
from smallbatch.engines.loop import initial_model, train
from smallbatch.engines.resident import load_resident
from smallbatch.errors import Stopping, TakenOver, UserError, WorkerLost, is_out_of_memory
from smallbatch.execution.watch import GRACE_S, HINT
from smallbatch.machine import free_memory
from smallbatch.models.own import its_errors_told
from smallbatch.placement.placement import Placement
from smallbatch.placement.rules import CAPTURED_SHARE, MEMORY_SHARE, deal
from smallbatch.processes import keep_freed_memory, live_and_die_with
from smallbatch.records import files
from smallbatch.records.checkpoints import Checkpoints, ChunkPlan
from smallbatch.records.schema import Clock, Environment

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig
    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.resident import Resident
    from smallbatch.execution.watch import Watch
    from smallbatch.protocol.outcome import Row, RunResult
    from smallbatch.protocol.run import Run

LESS = "set compute.memory lower; the same command then goes on"


@dataclass(frozen=True)
class Job:
    """The runs to train and what they have in common.

    Attributes:
        column: Every run of the column, in order of learning rate.
        missing: The runs to train.
        dataset: The prepared data.
        placement: Where and how to train.
        work: The folder for the runs' records.
        environment: Machine, versions and commit, for the records.
        plan: The runs of each chunk, from this attempt or an earlier one.
        checkpoint_seconds: Seconds between a chunk's checkpoints.
        watch: Knows of reasons to stop.
        beat: Shows that this process is alive; to be called regularly.
        keep_weights: Whether the records hold the final weights.
    """

    column: Sequence[Run]
    missing: Sequence[Run]
    dataset: Dataset
    placement: Placement
    work: Path
    environment: Environment
    plan: ChunkPlan
    checkpoint_seconds: float
    watch: Watch
    beat: Callable[[], None]
    keep_weights: bool = True

    @property
    def workers(self) -> int:
        """The number of worker processes; no more than there are runs."""
        return min(self.placement.workers, len(self.missing))


@dataclass(frozen=True)
class Chunk:
    """Runs that are computed together, and their checkpoints."""

    runs: Sequence[Run]
    checkpoints: Checkpoints


class _News(NamedTuple):
    """What is told of a run: when it began, each epoch's values, its outcome."""

    begun: Callable[[Run, datetime], None]
    epoch: Callable[[Run, Row], None]
    done: Callable[[Run, str], None]


def train_all(
    job: Job,
    on_epoch: Callable[[Run, Row], None],
    on_done: Callable[[Run, str], None],
    on_begin: Callable[[Run, datetime], None] = lambda _run, _started: None,
) -> None:
    """Train every missing run and write its record; calls the callbacks in this process.

    Raises:
        UserError: The model cannot be built for these images, or a record cannot be written.
        WorkerLost: Memory ran out, or a worker was killed.
        RuntimeError: A run failed.
        Stopped: The watch asked to stop; all progress is kept.
    """
    if job.placement.device == "cpu":
        # Always one thread per run, because the number of threads changes float sums, and because
        # no OpenMP pool may exist before the fork.
        torch.set_num_threads(1)
    augment = job.missing[0].settings.augment
    data = load_resident(job.dataset, augment=augment, device=torch.device(job.placement.device))
    initial_model(job.missing[0], data)  # a model that does not fit the images fails here, once
    stop = RawValue("b", 0)

    def stopping() -> bool:
        if job.placement.device == "cuda":  # there are no workers, so this process itself looks
            job.beat()
            return job.watch.stopping()
        return bool(stop.value)

    chunks = _chunks(job, data, stopping)
    news = _News(on_begin, on_epoch, on_done)
    if job.placement.device == "cpu":
        _train_in_workers(job, data, chunks, stop, news)
        return
    torch.backends.cudnn.deterministic = True
    try:
        for chunk in chunks:
            _train_chunk(job, data, chunk, news)
    except Stopping:
        job.watch.check()
        raise
    except torch.OutOfMemoryError as error:
        raise WorkerLost(f"the GPU's memory ran out; {LESS}") from error


def _chunks(job: Job, data: Resident, stopping: Callable[[], bool]) -> list[Chunk]:
    """The chunks of an earlier attempt that still hold missing runs, then new ones for the rest."""
    runs = {run.hash: run for run in job.column}
    missing = {run.hash for run in job.missing}
    at_most, limited = _lanes_at_most(job, data)
    planned: list[list[str]] = []
    for hashes in job.plan.read():
        fits = len(hashes) <= at_most or not limited
        if fits and missing & set(hashes) and set(hashes) <= runs.keys():
            planned.append(hashes)
    taken = {name for hashes in planned for name in hashes}
    left = [run for run in job.missing if run.hash not in taken]
    groups: dict[StudyConfig, list[Run]] = {}
    for run in left:  # lanes share their settings, so each BN batch size has chunks of its own
        groups.setdefault(run.settings, []).append(run)
    for group in groups.values():
        planned += [[run.hash for run in chunk] for chunk in deal(group, job.workers, at_most)]
    job.plan.write(planned)
    chunks: list[Chunk] = []
    for hashes in planned:
        folder = job.plan.chunk_folder(hashes)
        checkpoints = Checkpoints(folder, job.checkpoint_seconds, stopping)
        if checkpoints.saved and missing & set(hashes) - set(checkpoints.saved.runs):
            checkpoints.forget()  # a run ended before this checkpoint, but its record was lost
        alive = checkpoints.saved.runs if checkpoints.saved else hashes
        chunks.append(Chunk([runs[name] for name in alive], checkpoints))
    _tell_resumed(job, chunks)
    return chunks


def _lanes_at_most(job: Job, data: Resident) -> tuple[int, bool]:
    """Most lanes of a chunk, by a worker's memory, and whether the user set the memory."""
    if job.placement.engine == "loop":
        return 1, False
    if job.placement.memory is not None:
        memory = job.placement.memory
    elif job.placement.device == "cuda":
        torch.cuda.empty_cache()  # memory that an earlier column used is free again
        memory = int(CAPTURED_SHARE * torch.cuda.mem_get_info()[0])
    else:
        memory = int(MEMORY_SHARE * free_memory())
    lanes = memory // job.workers // lane_bytes(job.missing[0], data)
    return max(1, min(lanes, job.placement.method.lanes or lanes)), job.placement.memory is not None


def _tell_resumed(job: Job, chunks: Sequence[Chunk]) -> None:
    resumed = [chunk for chunk in chunks if chunk.checkpoints.saved]
    if not resumed:
        return
    updates = [chunk.checkpoints.saved.update for chunk in resumed if chunk.checkpoints.saved]
    runs = sum(len(chunk.runs) for chunk in resumed)
    span = sorted({min(updates), max(updates)})
    at = f"update{'s' if len(span) > 1 else ''} {' to '.join(map(str, span))}"
    on = "run goes on from its checkpoint" if runs == 1 else "runs go on from their checkpoints"
    print(f"m={job.column[0].batch_size}: {runs} {on}, at {at}", file=sys.stderr, flush=True)


def _train_in_workers(
    job: Job, data: Resident, chunks: Sequence[Chunk], stop: Any, news: _News
) -> None:
    # Forked workers share the data set's memory and need not import torch again.
    context = multiprocessing.get_context("fork")
    taken, events = context.Value("l", 0), context.Queue()
    arguments = (job, data, chunks, taken, events, os.getpid())
    workers = [
        context.Process(target=_work, args=arguments, daemon=True) for _ in range(job.workers)
    ]
    for worker in workers:
        worker.start()
    runs = {run.hash: run for run in job.missing}
    try:
        for kind, name, value in _events(job, events, workers, stop):
            if kind in _News._fields:
                getattr(news, kind)(runs[name], value)
            elif kind == "refused":
                raise UserError(value)
            elif kind == "lost":
                raise WorkerLost(value)
            else:
                title = f"base_lr={format_base_lr(runs[name].base_lr)} seed={runs[name].seed}"
                raise RuntimeError(f"training m={runs[name].batch_size} {title} failed:\n{value}")
    except TakenOver:
        for worker in workers:
            worker.kill()  # another process now writes the files that they would write
        raise
    finally:
        stop.value = 1  # after an error, the other workers keep their progress and end
        deadline = time.monotonic() + GRACE_S
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
            worker.kill()
            worker.join()


def _events(
    job: Job, events: Any, workers: Sequence[Any], stop: Any
) -> Iterator[tuple[str, str, Any]]:
    """The messages of the workers, until every missing run has ended.

    Raises:
        WorkerLost: Workers ended before that.
        Stopped: Workers were asked to stop and have ended.
    """
    ends = len(job.missing)
    while ends:
        job.beat()
        if job.watch.stopping():
            stop.value = 1
        alive = any(worker.is_alive() for worker in workers)
        failed = [worker.exitcode for worker in workers if worker.exitcode]
        try:
            event = events.get(timeout=0.2)
        except Empty:
            if not alive:
                job.watch.check()
            if failed or not alive:
                code = failed[0] if failed else 0
                how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
                hint = HINT if code != -signal.SIGKILL else f"if memory ran out, {LESS}"
                raise WorkerLost(f"a training worker {how}: {hint}") from None
            continue
        ends -= event[0] == "done"
        yield event


def _work(
    job: Job,
    data: Resident,
    chunks: Sequence[Chunk],
    taken: Any,
    events: Any,
    parent: int,
) -> None:
    live_and_die_with(parent)
    keep_freed_memory()

    def put(kind: str) -> Callable[[Run, Any], None]:
        return lambda run, value: events.put((kind, run.hash, value))

    news = _News(*map(put, _News._fields))
    while True:
        with taken.get_lock():
            i, taken.value = taken.value, taken.value + 1
        if i >= len(chunks):
            return
        chunk = chunks[i]
        name = chunk.runs[0].hash
        try:
            _train_chunk(job, data, chunk, news)
        except Stopping:
            return
        except UserError as error:
            events.put(("refused", name, str(error)))
        except OSError as error:
            events.put(("refused", name, f"{error.filename}: cannot be written: {error.strerror}"))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
            if is_out_of_memory(error):
                events.put(("lost", name, f"a training worker ran out of memory; {LESS}"))
            else:
                events.put(("failed", name, traceback.format_exc()))


def _train_chunk(job: Job, data: Resident, chunk: Chunk, news: _News) -> None:
    """Train the runs of a chunk, and write each run's record when it ends."""
    # Some runs may have a record already, if they ended after the checkpoint that is resumed.
    missing = {run.hash for run in job.missing}
    checkpoints = chunk.checkpoints

    def tell(run: Run, row: Row) -> None:
        if run.hash in missing:
            news.epoch(run, row)

    def keep(run: Run, result: RunResult, seconds: float) -> None:
        if run.hash not in missing:
            return
        images = result.rows[-1]["updates"] * run.batch_size
        result = result if job.keep_weights else replace(result, weights={})
        clock = Clock(
            started=checkpoints.started,
            ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=seconds,
            images_per_second=images / seconds if seconds else None,
            environment=job.environment,
        )
        files.save_record(job.work / run.hash, result, clock, job.placement.made_by)
        news.done(run, result.outcome)

    checkpoints.start_clock()
    for run in chunk.runs:
        if run.hash in missing:
            news.begun(run, datetime.fromisoformat(checkpoints.started))
    with its_errors_told(chunk.runs[0].settings.model):
        if job.placement.engine == "stacked":
            recorded = {run for run in chunk.runs if run.hash not in missing}
            train_lanes(
                chunk.runs, data, on_epoch=tell, on_end=keep, keeper=checkpoints,
                kernels=job.placement.method.kernels, by_torch=job.placement.native is None,
                native=job.placement.native, recorded=recorded,
            )  # fmt: skip
        else:
            (run,) = chunk.runs
            result = train(run, data, on_epoch=lambda row: tell(run, row), keeper=checkpoints)
            keep(run, result, checkpoints.elapsed)
    checkpoints.clear()
