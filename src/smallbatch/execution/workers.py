"""Trains a column's runs chunk by chunk: here, in forks on a CPU, or in a process for each GPU."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from smallbatch.data.encoded import EncodedDataset
from smallbatch.engines.lanes import train_lanes
from smallbatch.engines.loop import initial_model, train
from smallbatch.engines.ranks import OthersLost
from smallbatch.engines.resident import load_resident
from smallbatch.engines.streamed import Streamed
from smallbatch.errors import Stopping, TakenOver, UserError, WorkerLost, is_out_of_memory
from smallbatch.execution.chunks import Chunk, Job, open_chunk, plan_chunks, tell_resumed
from smallbatch.execution.devices import start_workers
from smallbatch.execution.following import News, Shared, follow, less
from smallbatch.execution.ranks import SILENT_S, met
from smallbatch.models.own import its_errors_told
from smallbatch.processes import keep_freed_memory, live_and_die_with
from smallbatch.records import files
from smallbatch.records.schema import Clock

if TYPE_CHECKING:
    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.batches import BatchSource
    from smallbatch.engines.ranks import Ranks
    from smallbatch.engines.resident import Resident
    from smallbatch.protocol.outcome import Row, RunResult
    from smallbatch.protocol.run import Run

T = TypeVar("T")


def train_all(
    job: Job,
    on_epoch: Callable[[Run, Row], None],
    on_done: Callable[[Run, str], None],
    on_begin: Callable[[Run, datetime], None] = lambda _run, _started: None,
) -> int:
    """Train every missing run and write its record; calls the callbacks in this process.

    Returns:
        Peak memory in bytes: on GPUs that of the fullest, on a CPU the largest process's.

    Raises:
        UserError: The model cannot be built for these images, or a record cannot be written.
        WorkerLost: Memory ran out, or a worker was killed.
        RuntimeError: A run failed.
        Stopped: The watch asked to stop; all progress is kept.
    """
    _set_up(job)
    data = _images(job, _first_images(job.dataset) if job.devices else job.dataset)
    initial_model(job.missing[0], data)  # a model that does not fit the images fails here, once
    planned = plan_chunks(job, data)
    tell_resumed(job, planned)
    news = News(on_begin, on_epoch, on_done)
    peak = 0
    if job.devices:
        spawn = multiprocessing.get_context("spawn")
        shared = Shared.by(spawn)
        peak = follow(job, start_workers(spawn, job, planned, shared), shared, news)
    elif job.placement.device == "cpu":
        # Forked workers share the data set's memory and need not import torch again.
        fork = multiprocessing.get_context("fork")
        shared = Shared.by(fork)
        workers = [
            fork.Process(target=_work_forked, args=(job, data, planned, shared, os.getpid(), rank),
                         daemon=not job.placement.decoders)  # a daemon may have no children
            for rank in range(max(job.workers, job.ranks))
        ]  # fmt: skip
        for worker in workers:
            worker.start()
        peak = follow(job, workers, shared, news)
    else:
        _train_here(job, data, planned, news)
    return max(peak, _peak_memory(job))


def _set_up(job: Job) -> None:
    """Prepare torch in a process that trains."""
    if job.placement.device == "cpu":
        # Always one thread per run, because the number of threads changes float sums, and because
        # no OpenMP pool may exist before the fork.
        torch.set_num_threads(1)
    else:
        torch.backends.cudnn.deterministic = True


def _images(job: Job, dataset: Dataset | EncodedDataset) -> BatchSource:
    augment, device = job.missing[0].settings.augment, torch.device(job.placement.device)
    if isinstance(dataset, EncodedDataset):
        processes = job.placement.decoders
        return Streamed(dataset, augment=augment, device=device, processes=processes)
    return load_resident(dataset, augment=augment, device=device)


def _first_images(dataset: Dataset | EncodedDataset) -> Dataset | EncodedDataset:
    """The first image of each split: enough to build a model for them and count its memory."""
    if isinstance(dataset, EncodedDataset):
        return dataset  # none is in memory
    return replace(dataset, **{name: array[:1] for name, array in dataset.arrays().items()})


def _peak_memory(job: Job) -> int:
    if job.placement.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _train_here(job: Job, data: BatchSource, planned: list[list[str]], news: News) -> None:
    def stopping() -> bool:
        job.beat()
        return job.watch.stopping()

    try:
        for hashes in planned:
            _train_chunk(job, data, open_chunk(job, hashes, stopping), news)
    except Stopping:
        job.watch.check()
        raise
    except torch.OutOfMemoryError as error:
        raise WorkerLost(f"the GPU's memory ran out; {less(job)}") from error


def _work_forked(
    job: Job, data: BatchSource, planned: list[list[str]], shared: Shared, parent: int, rank: int
) -> None:
    live_and_die_with(parent)
    work(job, data, planned, shared, rank)


def work(
    job: Job, data: BatchSource | None, planned: list[list[str]], shared: Shared, rank: int
) -> None:
    """Be a worker: train the next chunk until none is left; what happens is told as events.

    Args:
        job: The job.
        data: The images; None: they are put on the device here.
        planned: Hashes of each chunk's runs.
        shared: What is shared with the parent.
        rank: Its number; if the workers are ranks, they train every chunk together.
    """
    keep_freed_memory()
    events = shared.events

    def put(kind: str) -> Callable[[Run, Any], None]:
        return lambda run, value: events.put((kind, run.hash, value))

    def done(run: Run, outcome: str) -> None:
        put("done")(run, (outcome, _peak_memory(job)))

    news = News(put("begun"), put("epoch"), done)

    def load() -> BatchSource:
        _set_up(job)
        return _images(job, job.dataset)

    first = job.missing[0].hash
    data = data or _try(job, load, first, events)
    ranks = _try(job, lambda: met(job, rank, shared.meeting), first, events)
    events.put(("ready", "", os.getpid()))
    if data is None or ranks is None:
        return
    for hashes in _turns(job, planned, shared, ranks):

        def train_next(data: BatchSource = data, hashes: Sequence[str] = hashes) -> bool:
            if ranks.leads:
                chunk = open_chunk(job, hashes, lambda: bool(shared.stop.value))
                _train_chunk(job, data, chunk, news, ranks)
            else:
                _train_along(job, data, hashes, ranks)
            return True

        if not _try(job, train_next, hashes[0], events) and job.ranks > 1:
            return  # the others wait for it in the midst of an update


def _turns(job: Job, planned: list[list[str]], shared: Shared, ranks: Ranks) -> Iterator[list[str]]:
    """The chunks that a worker trains, until it is to stop; rank 0 stops for all ranks."""
    if job.ranks > 1:
        yield from takewhile(lambda _: not (ranks.leads and shared.stop.value), planned)
        return
    while not shared.stop.value:
        with shared.taken.get_lock():
            i, shared.taken.value = shared.taken.value, shared.taken.value + 1
        if i >= len(planned):
            return
        yield planned[i]


def _train_along(job: Job, data: BatchSource, hashes: Sequence[str], ranks: Ranks) -> None:
    """Train a chunk's run together with rank 0, which looks after it."""
    (run,) = (run for run in job.column if run.hash in hashes)
    with its_errors_told(run.settings.model):
        train(run, data, micro_batch=job.placement.method.micro_batch, ranks=ranks)


def _try(job: Job, call: Callable[[], T], name: str, events: Any) -> T | None:
    """What a function returns; if it fails, that is told of the run ``name``, for the parent."""
    try:
        return call()
    except Stopping:
        pass
    except TakenOver as error:
        events.put(("overtaken", name, str(error)))
    except OthersLost as error:
        time.sleep(SILENT_S)
        events.put(("lost", name, str(error)))
    except WorkerLost as error:
        events.put(("lost", name, str(error)))
    except UserError as error:
        events.put(("refused", name, str(error)))
    except OSError as error:
        events.put(("refused", name, f"{error.filename}: cannot be written: {error.strerror}"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent raises it
        if is_out_of_memory(error):
            events.put(("lost", name, f"a training worker ran out of memory; {less(job)}"))
        else:
            events.put(("failed", name, traceback.format_exc()))
    return None


def _train_chunk(
    job: Job, data: BatchSource, chunk: Chunk, news: News, ranks: Ranks | None = None
) -> None:
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
        files.save_record(job.work / run.hash, result, clock, job.placement.made_by, job.plan.fence)
        news.done(run, result.outcome)

    checkpoints.start_clock()
    for run in chunk.runs:
        if run.hash in missing:
            news.begun(run, datetime.fromisoformat(checkpoints.started))
    with its_errors_told(chunk.runs[0].settings.model):
        if job.placement.engine == "stacked":
            recorded = {run for run in chunk.runs if run.hash not in missing}
            train_lanes(
                chunk.runs, cast("Resident", data), on_epoch=tell, on_end=keep, keeper=checkpoints,
                kernels=job.placement.method.kernels, by_torch=job.placement.native is None,
                native=job.placement.native, recorded=recorded,
            )  # fmt: skip
        else:
            (run,) = chunk.runs
            result = train(
                run, data, on_epoch=lambda row: tell(run, row), keeper=checkpoints,
                micro_batch=job.placement.method.micro_batch, ranks=ranks,
            )  # fmt: skip
            keep(run, result, checkpoints.elapsed)
    checkpoints.clear()
