"""Which columns still lack runs, as tasks for a cluster."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.errors import UserError
from smallbatch.pipeline import code
from smallbatch.pipeline.cluster.board import Task
from smallbatch.pipeline.cluster.needs import needs
from smallbatch.pipeline.experiments import (
    best_base_lr,
    column_folder,
    is_as_planned,
    planned_runs,
    prepared,
    run_hashes,
    stage_of,
)
from smallbatch.placement.makers import makers_of
from smallbatch.protocol.schedule import updates_after
from smallbatch.records.files import load_record, maker_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from smallbatch.config.params import ComputeConfig, Params
    from smallbatch.config.study import StudyConfig
    from smallbatch.data.prepared import Meta
    from smallbatch.placement.makers import Makers
    from smallbatch.protocol.column import Column

WORK = Path(".smallbatch/work")
_LONGEST = 64  # characters of a model's name in a task's


def key_of(params: Params, study: str, batch_size: int) -> str:
    """The name of a column on the board."""
    return f"{params.dataset.name}-{study}-m{batch_size}"


def outstanding(
    params: Params,
    origin: str,
    columns: Collection[tuple[str, int]],
    own: tuple[str, int] | None = None,
) -> list[Task]:
    """Tasks for those of the columns that lack runs, each after the one that it depends on.

    A column is complete where DVC's lock file has it that the present code made it, or where all
    of its runs are kept and none is trained again; whether their records are whole is looked at
    later.

    Args:
        params: The checked params file.
        origin: The name of that file.
        columns: Study and batch size of each.
        own: The one whose files are to be made now, which takes all of its runs, whole.

    Raises:
        UserError: The data is not prepared with these settings.
    """
    meta = prepared(params).meta
    kept, tasks = code.kept_stages(), dict[tuple[str, int], Task]()
    for study, m in params.columns:
        source = (params.studies[study].best_of, m)
        waits = source in tasks
        if (study, m) not in columns:
            continue
        rates = None if waits else _base_lrs(params, study, m)
        if rates is not None:
            runs = planned_runs(params, study, m, rates, meta.fingerprint)
            is_own = (study, m) == own
            noted = () if is_own else kept
            if _is_complete(params, study, m, runs, noted, meta.fingerprint, whole=is_own):
                continue
        after = key_of(params, str(source[0]), m) if waits else None
        tasks[study, m] = _task(params, origin, meta, study, m, rates, after)
    return list(tasks.values())


def planned(params: Params, origin: str) -> dict[str, Task]:
    """A task for every column, by key, whether it lacks runs or not."""
    meta = prepared(params).meta
    tasks = (_task(params, origin, meta, *column, None, None) for column in params.columns)
    return {task.key: task for task in tasks}


def task_of_run(column: Column, compute: ComputeConfig, prepared: Path, folder: Path) -> Task:
    """A task for a run outside the pipeline.

    Args:
        column: Of this run alone.
        compute: By what it is trained.
        prepared: The folder of its prepared data.
        folder: That of its result files.
    """
    (run,), meta = column.runs, column.dataset.meta
    study = run.settings.model_dump(mode="json", exclude_unset=True)
    return Task(
        key=f"{meta.name}-{column.study[:_LONGEST]}-m{run.batch_size}-{run.hash}",
        study=column.study,
        batch_size=run.batch_size,
        params={
            "studies": {column.study: study},
            "compute": compute.model_dump(mode="json", exclude_unset=True),
        },
        origin="run",
        base_lrs=(run.base_lr,),
        stage=None,
        after=None,
        runs=1,
        updates=column.updates(run),
        needs=needs(run.settings),
        dataset=meta.name,
        fingerprint=meta.fingerprint,
        cluster=compute.cluster,
        wanted=_digest([run.hash]),
        seed=run.seed,
        prepared=str(prepared),
        folder=str(folder),
    )


def is_kept(task: Task, compute: ComputeConfig) -> bool:
    """Whether the run of a task outside the pipeline is kept, whole, and not trained again."""
    study = task.settings()
    runs = run_hashes(study, task.batch_size, task.base_lrs or (), task.seeds, task.fingerprint)
    return _are_kept(study, compute, task.batch_size, runs, whole=True)


def _task(
    params: Params,
    origin: str,
    meta: Meta,
    study: str,
    batch_size: int,
    base_lrs: Sequence[float] | None,
    after: str | None,
) -> Task:
    settings = params.studies[study]
    runs = planned_runs(params, study, batch_size, _any_rates(params, study), meta.fingerprint)
    wanted = sorted(runs)
    if source := settings.best_of:  # so the digest is the same before and after that is trained
        rates = params.base_lrs(source)
        wanted += sorted(planned_runs(params, source, batch_size, rates, meta.fingerprint))
    return Task(
        key=key_of(params, study, batch_size),
        study=study,
        batch_size=batch_size,
        params=params.model_dump(mode="json", by_alias=True, exclude_unset=True),
        origin=origin,
        base_lrs=base_lrs,
        stage=stage_of(params, study, batch_size),
        after=after,
        runs=len(runs),
        updates=updates_after(settings.at(batch_size)[0].epochs, meta.counts["train"], batch_size),
        needs=needs(settings),
        dataset=meta.name,
        fingerprint=meta.fingerprint,
        cluster=params.compute.cluster,
        wanted=_digest(wanted),
    )


def _digest(runs: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(runs).encode()).hexdigest()[:16]


def _any_rates(params: Params, study: str) -> Sequence[float]:
    """The learning rates of a study; of a dependent one any, as it has one that is not known."""
    return (1.0,) if params.studies[study].best_of else params.base_lrs(study)


def _base_lrs(params: Params, study: str, batch_size: int) -> Sequence[float] | None:
    """The learning rates of a column; None where that which they come from is not there."""
    source = params.studies[study].best_of
    if source is None:
        return params.base_lrs(study)
    try:
        return (best_base_lr(column_folder(params, source, batch_size)),)
    except UserError:
        return None


def _is_complete(
    params: Params,
    study: str,
    batch_size: int,
    runs: Collection[str],
    kept: Collection[str],
    fingerprint: str,
    *,
    whole: bool,
) -> bool:
    if _are_kept(params.studies[study], params.compute, batch_size, runs, whole=whole):
        return True
    if stage_of(params, study, batch_size) not in kept or params.studies[study].best_of:
        return False
    try:
        return is_as_planned(params, study, batch_size, fingerprint)
    except UserError:
        return False


def _are_kept(
    study: StudyConfig,
    compute: ComputeConfig,
    batch_size: int,
    runs: Collection[str],
    *,
    whole: bool,
) -> bool:
    # Should an engine that is asked for not take the study, the node finds the runs kept.
    engine = "loop" if compute.engine == "auto" else compute.engine
    makers = makers_of(study, compute, engine, batch_size=batch_size)
    of = {run: _maker(WORK / run, makers, whole=whole) for run in runs}
    return makers.among(of) == set(runs)


def _maker(record: Path, makers: Makers, *, whole: bool) -> str | None:
    """What made a kept run; with ``whole``, if all of its record can be read."""
    if not whole:
        return maker_of(record)
    kept = load_record(record, makers)
    return kept and kept.made_by
