"""What the runs of a params file will cost: updates, images, FLOPs, memory and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from smallbatch.errors import UserError
from smallbatch.placement.placement import (
    Placement,
    memory_of,
    place,
    resolve_device,
    workload_of,
)
from smallbatch.placement.workload import Workload, training_flops_of
from smallbatch.protocol.column import Column, plan_column
from smallbatch.protocol.run import PROTOCOL
from smallbatch.records import files
from smallbatch.records.columns import read_record
from smallbatch.speed.plan_rates import interpolate, known_rates, measure, startup

if TYPE_CHECKING:
    from smallbatch.config.params import Params
    from smallbatch.data.prepared import Meta
    from smallbatch.engines.kinds import Engine
    from smallbatch.records.schema import ColumnRecord


@dataclass(frozen=True)
class ColumnPlan:
    """What is left to train of a column, and what it costs.

    Attributes:
        study: The name of the study.
        batch_size: m.
        runs: The number of all runs.
        kept: The number of runs that are trained already.
        shared: The number of others that a column before it has as well, as where a BN batch is a
            whole batch: they are trained once. The following is about the rest.
        recorded: Whether it is known what made the kept runs: they have records.
        older_protocol: The protocol of its results under ``models/``, if that is an older one than
            that of the runs left to train.
        updates: Updates, in sum over the runs.
        images: Training images, in sum over the runs.
        flops: FLOPs of training and evaluation.
        memory_bytes: Memory of the images, and of the runs that train side by side; of several
            GPUs that of one.
        engine: The engine that trains the column.
        images_per_second: The rate of training, in sum over the runs; None if no run is left.
        measured: Whether this rate was measured at this batch size, not interpolated.
        rough: Whether other programs took a part of the cores while the study's were measured.
        seconds: Time of training, evaluation and start of the processes, if no run diverges.
    """

    study: str
    batch_size: int
    runs: int
    kept: int
    shared: int
    recorded: bool
    older_protocol: int | None
    updates: int
    images: int
    flops: int
    memory_bytes: int
    engine: Engine
    images_per_second: float | None
    measured: bool
    rough: bool
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A params file's columns; ``prepared``: whether data were there to look up kept runs."""

    dataset: str
    device: str
    prepared: bool
    columns: tuple[ColumnPlan, ...]

    def total(self) -> dict[str, Any]:
        """Sums over the columns, and the largest memory of one."""
        sums = ("runs", "kept", "shared", "updates", "images", "flops", "seconds")
        total: dict[str, Any] = {
            name: sum(getattr(column, name) for column in self.columns) for name in sums
        }
        return total | {"memory_bytes": max(column.memory_bytes for column in self.columns)}

    def as_json(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {**asdict(self), "total": self.total()}


def plan(
    params: Params,
    *,
    prepared: Path,
    models: Path,
    work: Path,
    base_lrs: Callable[[str, int], Sequence[float]],
    is_kept: Callable[[str, int], bool],
) -> Plan:
    """Plan everything that `dvc repro` would train.

    Speeds that are not known yet are measured, which takes some seconds for each study.

    Args:
        params: The content of the params file.
        prepared: The folder of prepared data sets.
        models: The folder of the columns' result files.
        work: The folder of the runs' records.
        base_lrs: Gives the base learning rates of a study at a batch size.
        is_kept: Whether DVC keeps a study's column at a batch size, whose runs have no records.

    Raises:
        UserError: The shape of the images is not known yet, or the params do not fit the data.
    """
    from smallbatch.data.expected import expected_meta

    meta, is_prepared = expected_meta(params.dataset, prepared / params.dataset.name)
    device = resolve_device(params.compute.device)
    plans: list[ColumnPlan] = []
    planned: set[str] = set()  # hashes of runs
    for study in params.running:
        columns = [
            _column(params, study, m, meta, base_lrs(study, m)) for m in params.grid.batch_sizes
        ]
        kept = {
            column.batch_size: (
                _kept(column, params, models, work, is_kept) if is_prepared else (set[str](), True)
            )
            for column in columns
        }
        left = {
            column.batch_size: _hashes(column) - kept[column.batch_size][0] - planned
            for column in columns
        }
        rough = measure([column for column in columns if left[column.batch_size]], params)
        for column in columns:
            names, recorded = kept[column.batch_size]
            counts = _Counts(len(names), len(left[column.batch_size]), recorded)
            plans.append(_plan(column, columns, params, models, counts, rough=rough))
            if recorded:  # of a column of DVC's cache there are no runs to take over
                planned |= _hashes(column)
    return Plan(params.dataset.name, device, is_prepared, tuple(plans))


def _column(
    params: Params, study: str, batch_size: int, meta: Meta, base_lrs: Sequence[float]
) -> Column:
    from smallbatch.data.prepared import Dataset

    pixels = np.zeros((0, meta.channels, meta.height, meta.width), dtype=np.uint8)
    labels = np.zeros(0, dtype=np.int64)
    return plan_column(
        study,
        params.studies[study],
        Dataset(meta, pixels, labels, pixels, labels),
        batch_size=batch_size,
        base_lrs=base_lrs,
        seeds=params.seeds(study),
    )


class _Counts(NamedTuple):
    """The runs of a column that are trained already, and those that it has to train."""

    kept: int
    left: int
    recorded: bool


def _hashes(column: Column) -> set[str]:
    return {run.hash for run in column.runs}


def _kept(
    column: Column,
    params: Params,
    models: Path,
    work: Path,
    is_kept: Callable[[str, int], bool],
) -> tuple[set[str], bool]:
    """The runs that are trained already, and whether it is known what made them.

    They have a record, which alone tells that, or their column is complete and DVC keeps it.
    """
    names = _hashes(column)
    makers = place(column, params.compute, keep=False, here=False).makers
    found = ((name, files.load_record(work / name, makers)) for name in names)
    records = makers.among({name: kept and kept.made_by for name, kept in found})
    if records or any((work / name).exists() for name in names):
        return records, True
    # A column from DVC's cache has result files but no records.
    result = _result(column, params, models)
    whole = result is not None and names == {run.run for run in result.runs}
    kept = whole and is_kept(column.study, column.batch_size)
    return (names, False) if kept else (set(), True)


def _result(column: Column, params: Params, models: Path) -> ColumnRecord | None:
    try:
        return read_record(models / params.dataset.name / column.study / f"m{column.batch_size}")
    except UserError:
        return None


def _plan(
    column: Column,
    columns: Sequence[Column],
    params: Params,
    models: Path,
    counts: _Counts,
    *,
    rough: bool,
) -> ColumnPlan:
    workload = workload_of(column, params.compute)
    left, old = counts.left, _result(column, params, models)
    placement = place(column, params.compute, keep=False, here=left > 0)
    updates = left * column.updates(column.runs[0])
    images = updates * workload.batch_size
    forward_images = left * _evaluation_images(column)
    flops = training_flops_of(workload)
    rate, measured, seconds = None, False, 0.0
    if left:
        rates = known_rates(column, columns, params, placement)
        devices = min(left, max(1, len(placement.devices)))  # whose rate was measured is one
        rates = {m: devices * rate for m, rate in rates.items()}
        rate, measured = interpolate(rates, workload.batch_size), workload.batch_size in rates
        # An evaluation has large batches at any m and no backward pass, so it is about three times
        # as fast as the fastest training.
        seconds = images / rate + forward_images / (3 * max(rates.values()))
        seconds += startup() * min(devices, 2)  # several have processes, which begin after this one
    return ColumnPlan(
        study=column.study,
        batch_size=workload.batch_size,
        runs=len(column.runs),
        kept=counts.kept,
        shared=len(column.runs) - counts.kept - left,
        recorded=counts.recorded,
        older_protocol=old.protocol if left and old and old.protocol < PROTOCOL else None,
        updates=updates,
        images=images,
        flops=images * flops + forward_images * flops // 3,
        memory_bytes=_memory(column, workload, params, placement) if left else 0,
        engine=placement.engine,
        images_per_second=rate,
        measured=measured,
        rough=rough and rate is not None,
        seconds=seconds,
    )


def _evaluation_images(column: Column) -> int:
    """Images that one run evaluates: after every epoch, and at its end, also for BN statistics."""
    from smallbatch.engines.loop import POPULATION_PIXELS

    counts, settings = column.dataset.meta.counts, column.runs[0].settings
    each = counts["test"] + counts["validation"]
    final = counts["train"] + each
    if settings.norm in ("batch", "batch_conv", "ghost"):
        pixels = column.dataset.meta.height * column.dataset.meta.width
        final += min(counts["train"], POPULATION_PIXELS // pixels) + counts["test"]
    return settings.epochs * each + final


def _memory(column: Column, workload: Workload, params: Params, placement: Placement) -> int:
    import torch

    from smallbatch.engines.lanes import lane_bytes
    from smallbatch.engines.resident import load_resident
    from smallbatch.machine import free_memory
    from smallbatch.placement.memory import step_of
    from smallbatch.placement.rules import MEMORY_SHARE
    from smallbatch.placement.workload import noise

    resident = load_resident(noise(workload, 1), augment=False, device=torch.device("cpu"))
    lane = lane_bytes(column.runs[0], resident)
    if (size := placement.method.micro_batch) is not None:
        lane = step_of(column, workload).bytes(size)
    live = workload.workers
    if placement.engine == "stacked":
        budget = memory_of(params.compute) or int(MEMORY_SHARE * free_memory())
        live = min(workload.lanes, max(workload.workers, budget // lane))
        live = min(live, (placement.method.lanes or live) * workload.workers)
    image = 4 * math.prod(workload.image)
    return live * lane + sum(column.dataset.meta.counts.values()) * image
