"""Submits the columns that lack runs, each once, whoever asks for it and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.config.params import parse_compute
from smallbatch.errors import UserError
from smallbatch.pipeline.cluster.board import FINAL, Board, Scheduler, Task
from smallbatch.pipeline.cluster.outstanding import is_kept, outstanding, planned

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from smallbatch.config.params import ComputeConfig, Params


def scheduler_of(board: Board, compute: ComputeConfig) -> Scheduler:
    """Who carries out what is on a board, by `compute.cluster`.

    Raises:
        UserError: The setting is ``none``.
    """
    if compute.cluster == "slurm":
        from smallbatch.pipeline.cluster.slurm import Slurm

        return Slurm(board, compute)
    if compute.cluster == "ray":
        from smallbatch.pipeline.cluster.ray.scheduler import Ray

        return Ray(board, compute)
    raise UserError("compute.cluster: found none, allowed here: ray, slurm; or --cluster")


def submit(
    board: Board,
    scheduler: Scheduler,
    params: Params,
    origin: str,
    columns: Collection[tuple[str, int]],
    own: tuple[str, int] | None,
    check: Callable[[], None],
    on_cancelled: Callable[[list[Task]], None],
) -> list[Task]:
    """See that all of these columns that lack runs are on the board and carried out.

    What is under way already is left alone. What is under way with other settings is cancelled,
    whichever column of this params file it is, as it would replace results of the present ones.

    Args:
        board: The board.
        scheduler: Who carries out what is on it.
        params: The checked params file.
        origin: The name of that file.
        columns: Study and batch size of each.
        own: The one that has to have all of its runs here, whatever DVC's lock file says.
        check: Called while another process has the board; may raise.
        on_cancelled: Is told of tasks that were cancelled, while the board still has their events.

    Returns:
        The tasks that are under way now.

    Raises:
        UserError: The data is not prepared, or the cluster takes no tasks; the reason in one line.
    """
    return _submit(
        board, scheduler,
        lambda: outstanding(params, origin, columns, own),
        lambda under_way: _stale(under_way, params, origin),
        check, on_cancelled,
    )  # fmt: skip


def submit_run(
    board: Board,
    scheduler: Scheduler,
    task: Task,
    check: Callable[[], None],
    on_cancelled: Callable[[list[Task]], None],
) -> list[Task]:
    """The same for a run outside the pipeline, unless it is kept; other tasks are left alone."""
    return _submit(
        board, scheduler,
        lambda: [] if is_kept(task, _compute_of(task)) else [task],
        lambda under_way: [it for it in under_way if it.key == task.key and not is_same(it, task)],
        check, on_cancelled,
    )  # fmt: skip


def _submit(
    board: Board,
    scheduler: Scheduler,
    lacking: Callable[[], list[Task]],
    outdated: Callable[[list[Task]], list[Task]],
    check: Callable[[], None],
    on_cancelled: Callable[[list[Task]], None],
) -> list[Task]:
    with board.lock(check):
        wanted = lacking()
        under_way = [task for task in board.tasks() if not _has_ended(board, task)]
        if not wanted and not under_way:
            return []
        scheduler.refresh()
        under_way = [task for task in under_way if not _has_ended(board, task)]
        stale = outdated(under_way)
        if stale:
            cancel(board, stale)
            on_cancelled(stale)
        going = {task.key: task for task in under_way if task not in stale}
        new = [board.put(task) for task in wanted if task.key not in going]
        if new:
            scheduler.submit(new)
        return [*(going[task.key] for task in wanted if task.key in going), *new]


def _stale(under_way: Sequence[Task], params: Params, origin: str) -> list[Task]:
    """Tasks that would lead to other columns than those which a params file names."""
    if not under_way:
        return []
    now = planned(params, origin)
    found: list[Task] = []
    for task in under_way:
        same = now.get(task.key)
        # Another file may name other columns of the same images.
        of_this = (task.origin, task.dataset) == (origin, params.dataset.name)
        dropped = same is None and of_this and task.seed is None
        if dropped or (same is not None and not is_same(task, same)):
            found.append(task)
    return found


def by_scheduler(board: Board, tasks: Collection[Task]) -> list[tuple[Scheduler, list[Task]]]:
    """Who carries out which of these tasks.

    Raises:
        UserError: One is for a cluster that this version of the package does not know.
    """
    found: dict[str, list[Task]] = {}
    for task in tasks:
        found.setdefault(task.cluster, []).append(task)
    return [(scheduler_of(board, _compute_of(its[0])), its) for its in found.values()]


def cancel(board: Board, tasks: Collection[Task]) -> None:
    """End tasks, each by who carries it out; the board is locked.

    Raises:
        UserError: A cluster cannot be asked.
    """
    for scheduler, its in by_scheduler(board, tasks):
        scheduler.cancel([task.key for task in its])


def _compute_of(task: Task) -> ComputeConfig:
    try:
        return parse_compute({**task.params.get("compute", {}), "cluster": task.cluster}, task.key)
    except UserError:  # of another version; to ask about a task takes none of its settings
        return parse_compute({"cluster": task.cluster}, task.key)


def submit_again(board: Board, scheduler: Scheduler, tasks: Sequence[Task]) -> list[Task]:
    """Submit tasks once more that no longer run and did not end; the board is locked.

    Raises:
        UserError: The cluster takes no tasks.
    """
    again = [board.put(task) for task in tasks]
    if again:
        scheduler.submit(again)
    return again


def is_same(one: Task, other: Task) -> bool:
    """Whether two tasks lead to the same runs, in the same way."""
    rates = [None if it.base_lrs is None else [*it.base_lrs] for it in (one, other)]
    of = (one.wanted, one.cluster, dict(one.needs), one.params.get("compute"))
    same = of == (other.wanted, other.cluster, dict(other.needs), other.params.get("compute"))
    return same and (None in rates or rates[0] == rates[1])


def _has_ended(board: Board, task: Task) -> bool:
    state = board.state(task.key)
    over = state is None or state.status in (*FINAL, "lost", "stopped")
    return over or (state is not None and state.number != task.number)
