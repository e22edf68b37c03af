"""One column: every base learning rate × seed of a study at one batch size (one DVC stage)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from smallbatch import durable, machine
from smallbatch.errors import UserError, shown
from smallbatch.execution.sampler import Sampler
from smallbatch.execution.watch import Watch
from smallbatch.placement.placement import Placement
from smallbatch.protocol.column import Column
from smallbatch.protocol.run import Run
from smallbatch.records import checkpoints, files, hardware
from smallbatch.records.lock import Lock, one_writer
from smallbatch.records.schema import Clock, ColumnClock, Environment, Timing
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.protocol.outcome import Row
    from smallbatch.records.checkpoints import ChunkPlan
    from smallbatch.records.files import Kept

_OF_COLUMN = ("workers", "engine", "kernels", "micro_batch", "ranks", "device")
"""What `timing.json` has of the column, if it is the same for all runs; else of each run."""


class Observer(Protocol):
    """Receives news of a column's training: a progress display or a tracking mirror."""

    def run_begun(self, run: Run, started: datetime) -> None:
        """``run`` is trained now; its training started then, perhaps in an earlier attempt."""
        ...

    def run_epoch(self, run: Run, row: Row) -> None:
        """An epoch of ``run`` ended with the history values ``row``."""
        ...

    def run_done(self, run: Run, outcome: str) -> None:
        """``run`` ended, or its record was found from an earlier attempt."""
        ...


def train_column(
    column: Column,
    directory: Path,
    *,
    placement: Placement,
    checkpoint_seconds: float,
    work: Path = Path(".smallbatch/work"),
    observers: Sequence[Observer] = (),
    stage: str | None = None,
    environment: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    keep_weights: bool = True,
    on_attempt: Callable[[int], None] = lambda _number: None,
    tick: Callable[[], None] = lambda: None,
    kept_only: bool = False,
) -> None:
    """Train the missing runs of a column and write its result files to ``directory``.

    Args:
        column: The column.
        directory: The folder for `history.parquet`, `weights.safetensors`, `runs.json` and
            `timing.json`.
        placement: Where and how to train. On a CPU, chunks of runs go to several single-thread
            processes, by default one per core; each GPU trains one chunk after another.
        checkpoint_seconds: Seconds between a chunk's checkpoints.
        work: The folder for records of runs; they stay there when the column is complete.
        observers: Are told of the end of every epoch and run.
        stage: The name of the DVC stage, for the record.
        environment: Hardware, versions and commit of what is trained now, for the record; by
            default the present ones.
        watch: Knows of reasons to stop early; by default there are none.
        keep_weights: Whether records and files hold the final weights. A folder of records must
            have those of all runs or of none.
        on_attempt: Is told the number of this attempt at the column, once it holds the lock.
        tick: Is called several times a second.
        kept_only: Whether to train nothing, as all runs were trained elsewhere.

    Raises:
        UserError: The model cannot be built for these images, or runs are missing that were to be
            trained elsewhere.
        OSError: Something cannot be written; earlier files are unchanged.
        Stopped: The watch asked to stop; the same call then continues.
        TakenOver: Another process trains this column now; nothing more was written.
    """
    watch = watch or Watch()
    # Described now, because the checkout may change while this code trains.
    environment = {**(environment or machine.describe(placement.device)),
                   "workers": placement.workers}  # fmt: skip
    with one_writer(work, directory, watch.check) as lock:
        durable.check_replaceable(directory, files.NAMES)  # rather than after hours of training
        on_attempt(lock.attempt)
        sampler = Sampler(
            checkpoints.system_file(work, directory),
            placement.device,
            placement.devices,
            lock.fence,
        )
        started, began = datetime.now(UTC), time.perf_counter()
        trained = _train_missing(
            column,
            directory,
            placement,
            checkpoint_seconds,
            work,
            environment,
            observers,
            watch,
            lock,
            sampler,
            keep_weights,
            tick,
            kept_only,
        )
        records = _whole(_kept(column, work, placement), work)
        shared, clocks = files.shared_environment(
            {name: _placed(kept, placement) for name, kept in records.items()}
        )
        watch.check()
        kept = files.load_timing(checkpoints.timing_file(work, directory), clocks)
        clock = ColumnClock(
            started=min(started, *(datetime.fromisoformat(it.started) for it in clocks.values()))
            .isoformat(timespec="seconds")
        )  # fmt: skip
        if trained is not None:
            updates = sum(it.result.rows[-1]["updates"] for it in records.values())
            seconds = _busiest(trained.chunks, clocks, placement.workers)
            clock["seconds"] = time.perf_counter() - began
            clock["images_per_second"] = column.batch_size * updates / seconds
            clock["peak_memory_bytes"] = trained.peak
        of_column = {key: shared.pop(key) for key in _OF_COLUMN if key in shared}
        clock |= cast("ColumnClock", of_column)
        shared.pop("hardware", None)
        timing = kept or Timing(environment=shared, column=clock, runs=clocks)
        timing.column["stage"] = stage
        if len(trained_by := hardware.trained_by(timing)) > 1:
            _say(f"{directory}: {hardware.sentence(trained_by)}: {hardware.DIFFERS}")
        lock.beat(now=True)
        files.save_timing(checkpoints.timing_file(work, directory), timing, lock.fence)
        files.write_column(
            directory,
            dataset=column.dataset.meta,
            study=column.study,
            updates=column.updates(column.runs[0]),
            results=[(run, records[run.hash].result) for run in column.runs],
            timing=timing,
            system_use=sampler.finish() if trained is not None or sampler.content() else None,
            fence=lock.fence,
        )
        lock.beat(now=True)
        lock.fence.clear()


class _Trained(NamedTuple):
    """Peak memory in bytes, and the runs' hashes of each chunk."""

    peak: int
    chunks: list[list[str]]


def _train_missing(
    column: Column,
    directory: Path,
    placement: Placement,
    checkpoint_seconds: float,
    work: Path,
    environment: Environment,
    observers: Sequence[Observer],
    watch: Watch,
    lock: Lock,
    sampler: Sampler,
    keep_weights: bool,
    tick: Callable[[], None],
    kept_only: bool,
) -> _Trained | None:
    """Train the runs that have no record.

    Returns:
        What that took if all of the column was trained now, from the first update on; else None, as
        what an earlier attempt took is not known.
    """
    done = _kept(column, work, placement)
    for run in column.runs:
        if kept := done[run.hash]:
            _end(observers, run, kept.result.outcome)
    missing = [run for run in column.runs if done[run.hash] is None]
    plan = checkpoints.plan(lock.fence, placement.made_by)
    afresh = len(missing) == len(column.runs) and not plan.has_checkpoints()
    if not afresh:
        sampler.resume()
    if not missing:
        return None
    if kept_only:
        raise UserError(
            f"{work}: {len(missing)} of {count(len(column.runs), 'run')} of {directory} missing or "
            "made by other code, which the cluster said it had trained; run the same command again"
        )
    from smallbatch.execution.chunks import Job
    from smallbatch.execution.workers import train_all

    def beat() -> None:
        lock.beat()
        sampler.tick()
        tick()

    if placement.remark:
        _say(f"{directory}: {placement.remark}")
    if others := _others_checkpoints(plan):
        _say(f"{directory}: {others}")
    peak = train_all(
        Job(
            column=column.runs,
            missing=missing,
            dataset=column.dataset,
            placement=placement,
            work=work,
            environment=environment,
            plan=plan,
            checkpoint_seconds=checkpoint_seconds,
            watch=watch,
            beat=beat,
            keep_weights=keep_weights,
        ),
        on_begin=lambda run, started: _begin(observers, run, started),
        on_epoch=lambda run, row: _tell(observers, run, row),
        on_done=lambda run, outcome: _end(observers, run, outcome),
    )
    return _Trained(peak, plan.read()) if afresh else None


def _busiest(chunks: Sequence[Sequence[str]], clocks: Mapping[str, Clock], workers: int) -> float:
    """Seconds of the worker that trained longest; at least those of the longest chunk."""
    each = [sum(clocks[name].seconds for name in chunk) for chunk in chunks]
    return max([*each, sum(clock.seconds for clock in clocks.values()) / workers])


def _kept(column: Column, work: Path, placement: Placement) -> dict[str, Kept | None]:
    """The kept run of each hash; None if it is to be trained."""
    makers = placement.makers
    found = {run.hash: files.load_record(work / run.hash, makers) for run in column.runs}
    taken = makers.among({name: kept and kept.made_by for name, kept in found.items()})
    return {name: kept if name in taken else None for name, kept in found.items()}


def _whole(records: Mapping[str, Kept | None], work: Path) -> dict[str, Kept]:
    for name, record in records.items():
        if record is None:
            raise UserError(
                f"{work / name}: this run's record is gone: deleted, or replaced by a training of "
                "another column with another engine or other code; run the same command again"
            )
    return {name: record for name, record in records.items() if record is not None}


def _placed(kept: Kept, placement: Placement) -> Clock:
    """A run's clock, with where and how it was trained in its environment."""
    place = placement.makers.place(kept.made_by)
    return kept.clock.model_copy(update={"environment": {**kept.clock.environment, **place}})


def _others_checkpoints(plan: ChunkPlan) -> str:
    """A line if checkpoints lie there that are not used; a run goes on where it began."""
    folder = plan.folder.parent
    found = [it.relative_to(folder) for it in durable.files_below(folder)]
    versions = {it.parts[0] for it in found if it.suffix == ".checkpoint"}
    unused = sorted(versions - {plan.folder.name})
    if not unused:
        return ""
    return (
        f"checkpoints in {folder} are not used ({', '.join(unused)}): other hardware, another "
        "engine or other code made them, and an unfinished run goes on only where it began"
    )


def _begin(observers: Sequence[Observer], run: Run, started: datetime) -> None:
    for observer in observers:
        observer.run_begun(run, started)


def _tell(observers: Sequence[Observer], run: Run, row: Row) -> None:
    for observer in observers:
        observer.run_epoch(run, row)


def _end(observers: Sequence[Observer], run: Run, outcome: str) -> None:
    for observer in observers:
        observer.run_done(run, outcome)


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr, flush=True)
