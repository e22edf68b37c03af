"""Waits for columns that a cluster trains, and shows how far all of them are."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

from smallbatch.errors import Stopped, UserError, shown
from smallbatch.pipeline.cluster.board import FINAL, State
from smallbatch.pipeline.cluster.submit import is_same, submit_again
from smallbatch.pipeline.progress import clock
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from smallbatch.execution.watch import Watch
    from smallbatch.pipeline.cluster.board import Board, Scheduler, Task
    from smallbatch.pipeline.cluster.news import News

POLL_S = 0.5
ASK_S = 10.0
"""Seconds between questions to the scheduler."""
SPEAK_S = 30.0
"""Seconds between lines."""
TRIES = 3
"""How often a column is submitted again that made no progress meanwhile."""
_UNDER_WAY = ("queued", "running")


class Waiter:
    """Waits for tasks, and sees that those that were lost are carried out again.

    Args:
        board: The board.
        scheduler: Who carries them out.
        tasks: Those that are shown, the ones that are waited for among them.
        news: Is told of them.
        watch: Knows of reasons to stop waiting.
        on_done: Is told of each task that is done.
    """

    def __init__(
        self,
        board: Board,
        scheduler: Scheduler,
        tasks: Sequence[Task],
        news: News,
        watch: Watch,
        on_done: Callable[[Task], None],
    ) -> None:
        self._board, self._scheduler, self._news, self._watch = board, scheduler, news, watch
        self._on_done = on_done
        self._tasks = {task.key: task for task in tasks}
        self._states: dict[str, State] = {}
        self._told: set[str] = set()
        self._tries: Counter[str] = Counter()
        self._shares: dict[str, float] = {}
        self._asked = self._spoken = 0.0

    def until_ended(self, keys: Collection[str]) -> dict[str, State]:
        """Wait until these tasks have ended; returns their states.

        Raises:
            Stopped: The watch asked to stop; the cluster goes on.
            UserError: The cluster takes no tasks any more.
        """
        try:
            while True:
                self._look()
                if all(self._states[key].status in FINAL for key in keys):
                    return {key: self._states[key] for key in keys}
                self._speak()
                self._watch.check()
                time.sleep(POLL_S)
        except Stopped as stopped:
            left = sum(state.status in _UNDER_WAY for state in self._states.values())
            if not left:
                raise
            line = (
                f"{str(stopped).partition(':')[0]}: the cluster goes on with "
                f"{count(left, 'column')}, and the same command waits again; `smallbatch status` "
                "shows what is under way, `smallbatch cancel` ends it"
            )
            raise Stopped(line, stopped.exit_code) from None

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._asked + ASK_S:
            self._asked = now
            with self._board.lock(self._watch.check):
                self._scheduler.refresh()
                self._read()
                self._start_again()
        else:
            self._read()

    def _read(self) -> None:
        for key, task in [*self._tasks.items()]:
            former = self._states.get(key)
            if former and former.status in FINAL:
                continue
            state = self._board.state(key) or State(task.number)
            if state.number > task.number:
                task = self._of_another(task)
            elif state.number < task.number:  # of the submission before, written late
                state = State(task.number)
            self._states[key] = state
            self._news.pass_on(task)
            if state.status in FINAL:
                self._news.ended(task, killed=state.status != "done")
                self._tell(task, state)
                if state.status == "done":
                    self._on_done(task)

    def _of_another(self, task: Task) -> Task:
        """The submission of another process that took this one's place.

        Raises:
            UserError: It leads to other runs.
        """
        later = self._board.task(task.key)
        if later is None or not is_same(task, later):
            raise UserError(
                f"{task.key}: another command submitted it with other settings; run this one again"
            )
        self._tasks[task.key] = later
        return later

    def _tell(self, task: Task, state: State) -> None:
        reason = f": {state.message}" if state.message else ""
        self._say(f"{task.key}: {state.status}{reason}")

    def _start_again(self) -> None:
        again: list[Task] = []
        for key, state in self._states.items():
            if state.status not in ("lost", "stopped"):
                continue
            if state.share > self._shares.get(key, 0.0):
                self._tries[key] = 0
            self._shares[key] = state.share
            self._tries[key] += 1
            if self._tries[key] > TRIES:
                failed = f"was lost {TRIES} times without progress: {state.message}"
                self._board.set_state(key, state.now(status="failed", message=failed))
                continue
            self._say(f"{key}: {state.status} ({state.message}): submitted again")
            again.append(self._tasks[key])
        for task in submit_again(self._board, self._scheduler, again):
            self._tasks[task.key], self._states[task.key] = task, State(task.number)

    def _speak(self) -> None:
        now = time.monotonic()
        if now >= self._spoken + SPEAK_S:
            self._spoken = now
            self._say(summary([*self._tasks.values()], self._states))

    def _say(self, line: str) -> None:
        print(shown(line), file=sys.stderr, flush=True)


def summary(tasks: Sequence[Task], states: dict[str, State]) -> str:
    """One line: how many columns are where, what runs and how fast, and the time left."""
    numbers = Counter(state.status for state in states.values())
    parts = [f"{numbers[it]} {it}" for it in ("queued", "running", "done", "failed", "cancelled",
                                             "lost", "stopped") if numbers[it]]  # fmt: skip
    running = [(task, states[task.key]) for task in tasks if states[task.key].status == "running"]
    shown_tasks = [
        f"{task.key} on {state.node} {state.share:.0%}"
        + (f", {state.images_per_second:,.0f} images/s" if state.images_per_second else "")
        for task, state in running[:3]
    ]
    more = f" and {len(running) - 3} more" if len(running) > 3 else ""
    left = seconds_left(tasks, states)
    eta = f"; about {clock(left)} left" if left is not None else ""
    named = f" ({'; '.join(shown_tasks)}{more})" if shown_tasks else ""
    return f"{tasks[0].cluster}: {', '.join(parts)}{named}{eta}"


def seconds_left(tasks: Sequence[Task], states: dict[str, State]) -> float | None:
    """What is left of all tasks, at the speed of those that run; None while none has a speed.

    At least as long as the slowest of those that run.
    """
    speed, images, slowest = 0.0, 0.0, 0.0
    for task in tasks:
        state = states[task.key]
        if state.status in FINAL:
            continue
        left = (1 - min(state.share, 1.0)) * task.runs * task.updates * task.batch_size
        images += left
        if state.status == "running" and state.images_per_second:
            speed += state.images_per_second
            slowest = max(slowest, left / state.images_per_second)
    return max(images / speed, slowest) if speed else None
