"""Submits the columns that lack runs, each once, whoever asks for it and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.errors import UserError
from smallbatch.pipeline.cluster.board import FINAL, Board, Scheduler, Task
from smallbatch.pipeline.cluster.outstanding import outstanding

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
) -> list[Task]:
    """See that all of these columns that lack runs are on the board and carried out.

    What is under way already is left alone; what is under way with other settings is cancelled
    first.

    Args:
        board: The board.
        scheduler: Who carries out what is on it.
        params: The checked params file.
        origin: The name of that file.
        columns: Study and batch size of each.
        own: The one that has to have all of its runs here, whatever DVC's lock file says.
        check: Called while another process has the board; may raise.

    Returns:
        The tasks that are under way now.

    Raises:
        UserError: The data is not prepared, or the cluster takes no tasks; the reason in one line.
    """
    with board.lock(check):
        wanted = outstanding(params, origin, columns, own)
        if not wanted:
            return []
        scheduler.refresh()
        going, new = list[Task](), list[Task]()
        for task in wanted:
            former = board.task(task.key)
            if former and not _has_ended(board, task.key):
                if _is_same(former, task):
                    going.append(former)
                    continue
                scheduler.cancel([task.key])
            new.append(board.put(task))
        if new:
            scheduler.submit(new)
        return [*going, *new]


def submit_again(board: Board, scheduler: Scheduler, tasks: Sequence[Task]) -> list[Task]:
    """Submit tasks once more that no longer run and did not end; the board is locked.

    Raises:
        UserError: The cluster takes no tasks.
    """
    again = [board.put(task) for task in tasks]
    if again:
        scheduler.submit(again)
    return again


def _is_same(one: Task, other: Task) -> bool:
    """Whether two tasks lead to the same runs, in the same way."""
    of = (one.wanted, one.cluster, dict(one.needs), one.params.get("compute"))
    return of == (other.wanted, other.cluster, dict(other.needs), other.params.get("compute"))


def _has_ended(board: Board, key: str) -> bool:
    state = board.state(key)
    return state is None or state.status in (*FINAL, "lost", "stopped")
