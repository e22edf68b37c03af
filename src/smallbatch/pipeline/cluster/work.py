"""Trains one task of a board, on whatever node it was started."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.config.params import parse_compute, parse_params
from smallbatch.errors import Stopped, TakenOver, UserError, first_line
from smallbatch.execution.watch import Watch
from smallbatch.pipeline import experiments
from smallbatch.pipeline.cluster.board import Board, Task, read_task
from smallbatch.pipeline.cluster.journal import EVENTS, Events, Journal
from smallbatch.pipeline.cluster.needs import check, needs
from smallbatch.pipeline.single import plan_on
from smallbatch.pipeline.tracked import Tracked, column_info

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig
    from smallbatch.protocol.column import Column


def work(file: Path) -> None:
    """Train the column of a task file in this folder, as `smallbatch train` and `run` do.

    Its state and events are written beside the task file, for whoever waits for it.

    Args:
        file: `task-<number>.json` of a board.

    Raises:
        UserError: The task was replaced, needs something else than what is here, or cannot be
            trained.
        Stopped: By a signal; all progress is kept.
    """
    task = read_task(file)
    if task is None:
        raise UserError(f"{file}: no such task: it was cancelled, or submitted again")
    node = platform.node()
    with Watch(under_dvc=False) as watch:  # which may be gone, and the cluster's work goes on
        journal = Journal(Board(file.parent.parent), task, node)
        try:
            journal.tell("running")
            _train(task, node, journal, Events(file.with_name(EVENTS)), watch)
            journal.tell("done")
        except TakenOver:
            raise
        except Stopped as stopped:
            _tell_stopped(journal, stopped)
            raise
        except UserError as error:
            journal.tell("failed", f"{node}: {first_line(error)}")
            raise
        except Exception as error:
            journal.tell("failed", f"{node}: {type(error).__name__}: {first_line(error)}")
            raise


def _tell_stopped(journal: Journal, stopped: Stopped) -> None:
    """Say that the task can go on, unless it was cancelled, after which it is not to.

    Raises:
        UserError: It was.
    """
    try:
        journal.tell("stopped", first_line(stopped))
    except Stopped as cancelled:
        raise UserError(first_line(cancelled)) from None


def _train(task: Task, node: str, journal: Journal, events: Events, watch: Watch) -> None:
    study = task.settings()
    check(task.needs, needs(study), node)

    from smallbatch import machine
    from smallbatch.execution.column import train_column
    from smallbatch.placement.placement import place
    from smallbatch.speed.calibration import find_out

    column = _planned(task, study)
    if column.dataset.meta.fingerprint != task.fingerprint:
        raise UserError(f"{task.images}: other images than where the column was submitted")
    compute = parse_compute(task.params.get("compute", {}), task.origin)
    find_out(column, compute)
    placement = place(column, compute)
    environment = machine.describe(placement.device)
    events.start(column_info(column, task.results, placement, environment, task.stage))
    journal.state = replace(journal.state, device=_device(environment, placement.device))
    train_column(
        column,
        task.results,
        placement=placement,
        checkpoint_seconds=compute.checkpoint_seconds,
        observers=[journal, Tracked(events, column)],
        stage=task.stage,
        environment=environment,
        watch=watch,
        tick=journal.tick,
    )


def _planned(task: Task, study: StudyConfig) -> Column:
    if task.seed is None:
        params = parse_params(dict(task.params), task.origin)
        return experiments.plan_study_column(params, task.study, task.batch_size, task.base_lrs)

    from smallbatch.data.encoded import load_any

    return plan_on(
        load_any(task.images), task.study, study,
        batch_size=task.batch_size, base_lrs=task.base_lrs or (), seeds=task.seeds,
    )  # fmt: skip


def _device(environment: dict[str, object], device: str) -> str:
    return str(environment["gpu"] if device == "cuda" else environment["cpu"])
