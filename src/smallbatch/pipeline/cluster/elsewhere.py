"""What the commands do with a cluster: train a column there, submit many, show, cancel."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from smallbatch.errors import Missing, UserError
from smallbatch.execution.watch import Watch
from smallbatch.pipeline.cluster.board import FINAL, Board, State, Task
from smallbatch.pipeline.cluster.journal import EVENTS
from smallbatch.pipeline.cluster.news import News
from smallbatch.pipeline.cluster.outstanding import key_of, task_of_run
from smallbatch.pipeline.cluster.submit import (
    by_scheduler,
    cancel,
    scheduler_of,
    submit,
    submit_run,
)
from smallbatch.pipeline.cluster.targets import columns_of_repro
from smallbatch.pipeline.cluster.wait import Waiter, summary
from smallbatch.pipeline.progress import clock
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from smallbatch.config.params import ComputeConfig, Params
    from smallbatch.pipeline.cluster.board import Scheduler
    from smallbatch.protocol.column import Column
    from smallbatch.tracking import LiveMirror

_NAMED = 3  # columns in a message
_LONGEST_S = 600.0  # that MLflow may take for all columns


def train_elsewhere(
    params: Params, origin: str, study: str, batch_size: int, mirror: LiveMirror, watch: Watch
) -> str:
    """Have a column trained by the cluster, and wait until its runs are kept here.

    The first command of a `dvc repro` submits all columns that it was asked for.

    Returns:
        By what, where and in what time it was trained; empty if its runs were kept already.

    Raises:
        UserError: The cluster takes no tasks, or the column failed or was cancelled there.
        Stopped: The watch asked to stop; the cluster goes on.
    """
    own, board, key = (study, batch_size), Board(), key_of(params, study, batch_size)
    scheduler = scheduler_of(board, params.compute)
    columns = {own, *columns_of_repro(params)}
    news = News(board, mirror)
    tasks = submit(
        board, scheduler, params, origin, columns, own, watch.check,
        lambda cancelled: _tell_cancelled(news, cancelled),
    )  # fmt: skip
    return _wait(board, scheduler, tasks, key, news, mirror, watch)


def run_elsewhere(
    column: Column,
    compute: ComputeConfig,
    prepared: Path,
    folder: Path,
    mirror: LiveMirror,
    watch: Watch,
) -> str:
    """The same for a run outside the pipeline.

    Args:
        column: Of this run alone.
        compute: By what it is trained.
        prepared: The folder of its prepared data.
        folder: That of its result files.
        mirror: Copies it to MLflow.
        watch: Knows of reasons to stop waiting.
    """
    task, board = task_of_run(column, compute, prepared, folder), Board()
    scheduler, news = scheduler_of(board, compute), News(board, mirror)
    tasks = submit_run(
        board, scheduler, task, watch.check, lambda cancelled: _tell_cancelled(news, cancelled)
    )
    return _wait(board, scheduler, tasks, task.key, news, mirror, watch)


def _wait(
    board: Board,
    scheduler: Scheduler,
    tasks: list[Task],
    key: str,
    news: News,
    mirror: LiveMirror,
    watch: Watch,
) -> str:
    """Wait until the column with this key is trained, if it is one of the tasks."""
    own = next((task for task in tasks if task.key == key), None)
    if own is None:
        return ""

    def complete(task: Task) -> None:
        if task.key != key:  # which is completed when its files are made here
            _complete(task, mirror)

    state = Waiter(board, scheduler, tasks, news, watch, complete).until_ended([key])[key]
    if state.status != "done":
        log = board.folder_of(key) / "log"  # there is none before it was begun
        raise UserError(
            f"{key}: {state.status} on the cluster: {state.message or 'no reason is known'}"
            + (f"; its log is {log}" if log.exists() else "")
        )
    return _how(own, state)


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
        tasks = submit(
            board, scheduler, params, origin, columns, None, watch.check,
            lambda cancelled: _kill_in_mlflow(board, cancelled),
        )  # fmt: skip
        if tasks and not wait:
            return f"{count(len(tasks), 'column')} under way: `smallbatch status` shows them"
        if not tasks:
            return "all of these columns are trained"
        mirror = LiveMirror()
        news, done = News(board, mirror), list[Task]()
        try:
            waiter = Waiter(board, scheduler, tasks, news, watch, done.append)
            waiter.until_ended([task.key for task in tasks])
        except BaseException:
            mirror.abort()
            raise
        folders = [task.results for task in done if task.results.is_dir()]
        for folder in folders[:-1]:
            mirror.finish_later(folder)
        if folders:
            mirror.finish(folders[-1], timeout_s=_LONGEST_S)
        else:
            mirror.abort()
    trained = {task.key for task in done}
    failed = [task.key for task in tasks if task.key not in trained]
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
        for scheduler, _ in by_scheduler(board, tasks):
            scheduler.refresh()
    states = {task.key: board.state(task.key) or State(task.number) for task in tasks}
    width = max(len(task.key) for task in tasks)
    lines = [f"{task.key:{width}}  {_told(states[task.key])}" for task in tasks]
    return [*lines, summary(tasks, states)]


def cancel_columns(studies: Collection[str], batch_sizes: Collection[int]) -> list[str]:
    """End what is under way of these columns.

    Args:
        studies: Their names, or keys of columns; empty: all.
        batch_sizes: Their m; empty: all.

    Returns:
        The keys of those that were under way.

    Raises:
        UserError: The cluster cannot be asked.
    """
    board = Board()
    with board.lock():
        tasks = board.tasks()
        _refuse_unknown("study, column or run", studies, set().union(*map(_names, tasks)))
        _refuse_unknown("--batch-size", batch_sizes, {task.batch_size for task in tasks})
        states = {task.key: board.state(task.key) for task in tasks}
        left = [
            task
            for task in tasks
            if (state := states[task.key])
            and state.status not in FINAL
            and (not studies or _names(task).intersection(studies))
            and task.batch_size in (batch_sizes or {task.batch_size})
        ]
        cancel(board, left)
        for task in left:
            if (state := board.state(task.key)) and state.status == "cancelled":
                board.set_state(task.key, state.now(message="by `smallbatch cancel`"))
    _kill_in_mlflow(board, left)
    return [task.key for task in left]


def _refuse_unknown(name: str, asked: Collection[object], known: set[Any]) -> None:
    for value in asked:
        if value not in known:
            found = f"{name}: found {value!r}"
            raise UserError(f"{found}, submitted: {', '.join(map(str, sorted(known))) or 'none'}")


def _tell_cancelled(news: News, tasks: Collection[Task]) -> None:
    """MLflow's runs of these never end: they are marked as killed."""
    for task in tasks:
        news.kill(task)


def _kill_in_mlflow(board: Board, tasks: Collection[Task]) -> None:
    """The same where nobody waits: a process does so after this one has ended."""
    from smallbatch.tracking import LiveMirror

    begun = [task for task in tasks if (board.folder_of(task.key) / EVENTS).exists()]
    if begun:
        mirror = LiveMirror()
        _tell_cancelled(News(board, mirror), begun)
        mirror.abort()


def _complete(task: Task, mirror: LiveMirror) -> None:
    """MLflow shows the whole of a column whose files the cluster has written."""
    if task.results.is_dir():
        mirror.finish_later(task.results)


def _names(task: Task) -> set[str]:
    """By what it is cancelled; a run outside the pipeline may have the name of a study."""
    return {task.key} if task.seed is not None else {task.key, task.study}


def _how(task: Task, state: State) -> str:
    """By what, where and in what time a task was carried out; the time is the last attempt's."""
    where = f" on {state.node}" if state.node else ""
    attempt = f" at attempt {state.attempt}" if state.attempt > 1 else ""
    try:
        took = datetime.fromisoformat(state.told) - datetime.fromisoformat(state.started)
    except (ValueError, TypeError):  # by another version
        return f"trained by {task.cluster}{where}{attempt}"
    return f"trained by {task.cluster}{where}{attempt} in {clock(max(took.total_seconds(), 0.0))}"


def _told(state: State) -> str:
    share = "" if state.status in (*FINAL, "queued") else f" {state.share:.0%}"
    where = f" on {state.node}" if state.node else ""
    speed = f", {state.images_per_second:,.0f} images/s" if state.images_per_second else ""
    attempt = f", attempt {state.attempt}" if state.attempt > 1 else ""
    reason = f": {state.message}" if state.message else ""
    return f"{state.status}{share}{where}{speed}{attempt}{reason}"
