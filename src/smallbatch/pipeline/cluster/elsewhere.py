"""What the commands do with a cluster: train a column there, submit many, show, cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.config.params import parse_compute
from smallbatch.errors import Missing, UserError
from smallbatch.execution.watch import Watch
from smallbatch.pipeline.cluster.board import FINAL, Board, State, Task
from smallbatch.pipeline.cluster.news import News
from smallbatch.pipeline.cluster.outstanding import key_of
from smallbatch.pipeline.cluster.submit import scheduler_of, submit
from smallbatch.pipeline.cluster.targets import columns_of_repro
from smallbatch.pipeline.cluster.wait import Waiter, summary
from smallbatch.pipeline.experiments import column_folder
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Collection

    from smallbatch.config.params import Params
    from smallbatch.pipeline.cluster.board import Scheduler
    from smallbatch.tracking import LiveMirror

_NAMED = 3  # columns in a message
_LONGEST_S = 600.0  # that MLflow may take for all columns


def train_elsewhere(
    params: Params, origin: str, study: str, batch_size: int, mirror: LiveMirror, watch: Watch
) -> None:
    """Have a column trained by the cluster, and wait until its runs are kept here.

    The first command of a `dvc repro` submits all columns that it was asked for.

    Raises:
        UserError: The cluster takes no tasks, or the column failed or was cancelled there.
        Stopped: The watch asked to stop; the cluster goes on.
    """
    own, board = (study, batch_size), Board()
    scheduler = scheduler_of(board, params.compute)
    columns = {own, *columns_of_repro(params)}
    tasks = submit(board, scheduler, params, origin, columns, own, watch.check)
    if key_of(params, *own) not in {task.key for task in tasks}:
        return
    waiter = Waiter(board, scheduler, tasks, News(board, mirror), watch)
    key = key_of(params, *own)
    state = waiter.until_ended([key])[key]
    if state.status != "done":
        raise UserError(
            f"{key}: {state.status} on the cluster: {state.message or 'no reason is known'}; "
            f"its log is {board.folder_of(key) / 'log'}"
        )


def submit_columns(
    params: Params, origin: str, columns: Collection[tuple[str, int]], *, wait: bool
) -> str:
    """Submit columns that lack runs; with ``wait``, wait until all have ended.

    While it waits, MLflow shows them.

    Returns:
        One line on what became of them.

    Raises:
        UserError: The cluster takes no tasks, or columns failed.
        Stopped: By a signal while waiting; the cluster goes on.
    """
    from smallbatch.tracking import LiveMirror

    board = Board()
    scheduler = scheduler_of(board, params.compute)
    with Watch() as watch:
        tasks = submit(board, scheduler, params, origin, columns, None, watch.check)
        if not tasks:
            return "all of these columns are trained"
        if not wait:
            return f"{count(len(tasks), 'column')} under way: `smallbatch status` shows them"
        mirror = LiveMirror()
        try:
            waiter = Waiter(board, scheduler, tasks, News(board, mirror), watch)
            states = waiter.until_ended([task.key for task in tasks])
        except BaseException:
            mirror.abort()
            raise
        done = [task for task in tasks if states[task.key].status == "done"]
        folders = [column_folder(params, task.study, task.batch_size) for task in done]
        for folder in folders[:-1]:
            mirror.finish_later(folder)
        if folders:
            mirror.finish(folders[-1], timeout_s=_LONGEST_S)
    failed = [task.key for task in tasks if task not in done]
    if failed:
        more = f" and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
        raise UserError(
            f"{len(failed)} of {count(len(tasks), 'column')} not trained: "
            f"{', '.join(failed[:_NAMED])}{more}; `smallbatch status` says why"
        )
    return f"{count(len(tasks), 'column')} trained"


def status_lines() -> list[str]:
    """A line for each task of this project's board, and one on all of them.

    Raises:
        UserError: There is none.
    """
    board = Board()
    if not (tasks := board.tasks()):
        raise Missing(f"{board.folder}: no column was submitted")
    with board.lock():
        for scheduler in _schedulers(board, tasks):
            scheduler.refresh()
    states = {task.key: board.state(task.key) or State(task.number) for task in tasks}
    width = max(len(task.key) for task in tasks)
    lines = [f"{task.key:{width}}  {_told(states[task.key])}" for task in tasks]
    return [*lines, summary(tasks, states)]


def cancel_columns(studies: Collection[str], batch_sizes: Collection[int]) -> list[str]:
    """End what is under way of these columns.

    Args:
        studies: Their names; empty: all.
        batch_sizes: Their m; empty: all.

    Returns:
        The keys of those that were under way.

    Raises:
        UserError: The cluster cannot be asked.
    """
    board = Board()
    tasks = [
        task
        for task in board.tasks()
        if (not studies or task.study in studies)
        and (not batch_sizes or task.batch_size in batch_sizes)
    ]
    with board.lock():
        states = {task.key: board.state(task.key) for task in tasks}
        ended = {key for key, state in states.items() if state is None or state.status in FINAL}
        left = [task for task in tasks if task.key not in ended]
        for scheduler in _schedulers(board, left):
            scheduler.cancel([task.key for task in left])
    return [task.key for task in left]


def _schedulers(board: Board, tasks: Collection[Task]) -> list[Scheduler]:
    """Who carries out these tasks."""
    compute = {task.cluster: parse_compute(task.params["compute"], task.origin) for task in tasks}
    return [scheduler_of(board, settings) for settings in compute.values()]


def _told(state: State) -> str:
    share = "" if state.status in (*FINAL, "queued") else f" {state.share:.0%}"
    where = f" on {state.node}" if state.node else ""
    speed = f", {state.images_per_second:,.0f} images/s" if state.images_per_second else ""
    attempt = f", attempt {state.attempt}" if state.attempt > 1 else ""
    reason = f": {state.message}" if state.message else ""
    return f"{state.status}{share}{where}{speed}{attempt}{reason}"
