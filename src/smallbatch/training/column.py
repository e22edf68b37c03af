"""One column: every base learning rate × seed of a study at one batch size (one DVC stage)."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from smallbatch.config import ComputeConfig, StudyConfig
from smallbatch.errors import UserError
from smallbatch.training import checkpoints, environment, files
from smallbatch.training.choosing import choose_engine, memory_of, resolve_device, workers_of
from smallbatch.training.engines import Engine, Kernels
from smallbatch.training.lock import Lock, one_writer
from smallbatch.training.protocol import Run, updates_after
from smallbatch.training.watch import Watch

if TYPE_CHECKING:
    from smallbatch.data.prepared import Dataset
    from smallbatch.training.loop import RunResult

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
        runs: one per (BN batch size, η̃, seed), all of one batch size.
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
        UserError: the batch size exceeds the training set, or does not suit the settings.
    """
    n = dataset.meta.counts["train"]
    if batch_size > n:
        raise UserError(
            f"batch size: found {batch_size}, allowed: at most the {n} training examples "
            f"of {dataset.meta.name}"
        )
    try:
        variants = settings.at(batch_size)
    except ValueError as error:
        raise UserError(f"studies.{study}.{error}") from None
    fingerprint = dataset.meta.fingerprint
    return Column(
        study,
        dataset,
        tuple(
            Run(variant, fingerprint, batch_size, base_lr, seed)
            for variant in variants
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
    watch: Watch | None = None,
) -> None:
    """Train what is missing of a column and write its result files to ``directory``.

    Args:
        column: the runs.
        directory: where `history.parquet`, `weights.safetensors`, `runs.json` and `timing.json` go.
        compute: engine, device and worker processes. On the CPU the runs, or chunks of lanes, go
            to several single-thread processes, by default one per core; a GPU trains them one
            after another.
        work: where finished runs are kept until, and after, their column is whole.
        observers: told of every epoch and every end.
        stage: the DVC stage this is, for the record.
        watch: for reasons to stop early; by default there are none.

    Raises:
        UserError: the device is not there.
        OSError: something cannot be written; what was there before stays.
        Stopped: the watch asked for an end; the same call goes on from there.
    """
    watch = watch or Watch()
    with one_writer(work, directory, watch.check) as lock:
        _train_column(column, directory, compute, work, observers, stage, watch, lock)
        lock.beat(now=True)
        shutil.rmtree(checkpoints.column_folder(work, directory), ignore_errors=True)


def _train_column(
    column: Column,
    directory: Path,
    compute: ComputeConfig,
    work: Path,
    observers: Sequence[Observer],
    stage: str | None,
    watch: Watch,
    lock: Lock,
) -> None:
    started, clock = datetime.now(UTC), time.perf_counter()
    device = resolve_device(compute.device)
    choice = choose_engine(column, compute)
    made_by = made_by_on(choice.engine, device, column.runs[0].settings, choice.kernels)
    about = environment.describe(device)  # now: the checkout may move on while this code trains
    done = {run.hash: files.load_record(work / run.hash, made_by) for run in column.runs}
    for run in column.runs:
        if kept := done[run.hash]:
            _end(observers, run, kept[0].outcome)
    missing = [run for run in column.runs if done[run.hash] is None]
    workers = workers_of(column, compute, device)
    if missing:
        from smallbatch.training.workers import Job, train_all

        if choice.remark:
            print(f"{directory}: {choice.remark}", file=sys.stderr, flush=True)
        train_all(
            Job(
                column=column.runs,
                missing=missing,
                engine=choice.engine,
                dataset=column.dataset,
                device=device,
                workers=min(workers, len(missing)),
                memory=memory_of(compute),
                work=work,
                made_by=made_by,
                lanes=choice.lanes,
                kernels=choice.kernels,
                plan=checkpoints.plan(work, directory, made_by),
                checkpoint_seconds=compute.checkpoint_seconds,
                watch=watch,
                beat=lock.beat,
            ),
            on_epoch=lambda run, row: _tell(observers, run, row),
            on_done=lambda run, outcome: _end(observers, run, outcome),
        )
    records = {run.hash: _whole(work / run.hash, made_by) for run in column.runs}
    # Over all runs, those kept from an earlier attempt too: the speed while training.
    images, seconds = (
        sum(getattr(timing, what) for _, timing in records.values())
        for what in ("images", "seconds")
    )
    watch.check()
    timing = {
        "environment": about,
        "column": {
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "images_per_second": workers * images / seconds,
            "workers": workers,
            "engine": choice.engine,
            "kernels": choice.kernels,
            "device": device,
            "stage": stage,
            "peak_memory_bytes": _peak_memory(device),
        },
        "runs": {run.hash: records[run.hash][1].as_json() for run in column.runs},
    }
    lock.beat(now=True)
    files.write_column(
        directory,
        dataset=asdict(column.dataset.meta),
        study=column.study,
        updates=column.updates(column.runs[0]),
        results=[(run, records[run.hash][0]) for run in column.runs],
        timing=timing,
    )


def _whole(directory: Path, made_by: str) -> tuple[RunResult, files.Timing]:
    record = files.load_record(directory, made_by)
    if record is None:
        raise RuntimeError(f"{directory}: the run that was just trained cannot be read back")
    return record


def made_by_on(
    engine: Engine, device: str, study: StudyConfig, kernels: Kernels | None = None
) -> str:
    """What a run's numbers depend on besides its hash: code, libraries, kernels and hardware."""
    from smallbatch.training.stacked import native

    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "timm", "numpy")]
    hardware = environment.gpu_name() if device == "cuda" else environment.processor()
    by = kernels or "torch"
    if kernels == "triton":
        versions.append(f"triton {metadata.version('triton')}")
    if engine == "stacked" and kernels is None and native.serves(study, device):
        by = native.version()
    return " ".join([files.code_digest(engine), *versions, device, str(hardware), by])


def _tell(observers: Sequence[Observer], run: Run, row: Row) -> None:
    for observer in observers:
        observer.run_epoch(run, row)


def _end(observers: Sequence[Observer], run: Run, outcome: str) -> None:
    for observer in observers:
        observer.run_done(run, outcome)


def _peak_memory(device: str) -> int:
    """Peak bytes: of the device on a GPU, of the largest worker process on a CPU."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    usage = max(resource.getrusage(who).ru_maxrss for who in _PROCESSES)
    return usage * 1024
