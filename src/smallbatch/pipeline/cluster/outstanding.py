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
    stage_of,
)
from smallbatch.placement.makers import makers_of
from smallbatch.protocol.schedule import updates_after
from smallbatch.records.files import maker_of

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from smallbatch.config.params import Params

WORK = Path(".smallbatch/work")


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
        own: The one whose files are to be made now, which takes all of its runs.

    Raises:
        UserError: The data is not prepared with these settings.
    """
    meta = prepared(params).meta
    kept, tasks = code.kept_stages(), dict[tuple[str, int], Task]()
    for study, m in params.columns:
        settings = params.studies[study]
        source = (settings.best_of, m) if settings.best_of else None
        waits = source in tasks
        if (study, m) not in columns:
            continue
        rates = None if waits else _base_lrs(params, study, m)
        runs = planned_runs(params, study, m, rates or (1.0,), meta.fingerprint)
        noted = kept if (study, m) != own else ()
        if rates is not None and _is_complete(params, study, m, runs, noted, meta.fingerprint):
            continue
        after = key_of(params, *source) if source and waits else None
        tasks[study, m] = Task(
            key=key_of(params, study, m),
            study=study,
            batch_size=m,
            params=params.model_dump(mode="json", by_alias=True, exclude_unset=True),
            origin=origin,
            base_lrs=rates,
            stage=stage_of(params, study, m),
            after=after,
            runs=len(runs),
            updates=updates_after(settings.at(m)[0].epochs, meta.counts["train"], m),
            needs=needs(settings),
            dataset=meta.name,
            fingerprint=meta.fingerprint,
            cluster=params.compute.cluster,
            wanted=_digest(sorted(runs), after),
        )
    return list(tasks.values())


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
) -> bool:
    # An engine that is asked for and cannot train the study leaves it to `loop`.
    makers = makers_of(params.studies[study], params.compute, "loop")
    if makers.among({run: maker_of(WORK / run) for run in runs}) == set(runs):
        return True
    if stage_of(params, study, batch_size) not in kept or params.studies[study].best_of:
        return False
    try:
        return is_as_planned(params, study, batch_size, fingerprint)
    except UserError:
        return False


def _digest(runs: Sequence[str], after: str | None) -> str:
    return hashlib.sha256(f"{runs} {after}".encode()).hexdigest()[:16]
