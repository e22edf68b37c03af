"""A node's news of the column that it trains: its state, and what MLflow is to show."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from smallbatch import private
from smallbatch.errors import INTERRUPTED, Stopped, TakenOver
from smallbatch.pipeline.cluster.board import State, make_way
from smallbatch.tracking.live import Teller

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from smallbatch.pipeline.cluster.board import Board, Status, Task
    from smallbatch.protocol.outcome import Row
    from smallbatch.protocol.run import Run

EVENTS = "events.jsonl"
TELL_S = 2.0
"""Seconds between the states that a node writes."""


class Events(Teller):
    """What happens to a column, a line of JSON for each message; whoever waits passes it on.

    Args:
        path: The file; what an earlier attempt wrote there is replaced.
    """

    def __init__(self, path: Path) -> None:
        make_way(path)
        self._path = path

    def _send(self, kind: str, content: Mapping[str, Any]) -> None:
        line = json.dumps({**content, "kind": kind}, default=list, ensure_ascii=False)
        private.refuse_links_of_others(self._path)
        file = private.open_shared(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(file, "ab") as opened:
            opened.write(f"{line}\n".encode(errors="replace"))


class Journal:
    """Keeps a task's state on the board; see :class:`~execution.column.Observer`.

    Args:
        board: The board.
        task: What is trained.
        node: The name of this machine.
    """

    def __init__(self, board: Board, task: Task, node: str) -> None:
        self._board, self._task = board, task
        former = board.state(task.key)
        attempt = former.attempt if former and former.number == task.number else 0
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        self.state = State(task.number, attempt + 1, "running", node, started=moment)
        self._began = self._told = time.monotonic()
        self._updates: dict[str, int] = {}  # done, by run
        self._done = self._trained = 0

    def tell(self, status: Status, message: str = "", **changes: Any) -> None:
        """Write the state, with how far the column is.

        Raises:
            TakenOver: A later attempt or submission writes its own.
            Stopped: The task was cancelled.
        """
        found, key = self._board.state(self._task.key), self._task.key
        if found and (found.number, found.attempt) > (self.state.number, self.state.attempt):
            raise TakenOver(f"{key}: attempt {found.attempt} on {found.node} goes on with it")
        if found and found.number == self.state.number and found.status == "cancelled":
            raise Stopped(f"{key}: cancelled", INTERRUPTED)
        self._told = time.monotonic()
        seconds = self._told - self._began
        self.state = self.state.now(
            status=status,
            message=message,
            runs_done=self._done,
            share=sum(self._updates.values()) / (self._task.runs * self._task.updates),
            images_per_second=self._trained / seconds if self._trained else None,
            **changes,
        )
        self._board.set_state(key, self.state)

    def tick(self) -> None:
        """Write the state if it is time; to be called often."""
        if time.monotonic() >= self._told + TELL_S:
            self.tell("running")

    def run_begun(self, run: Run, started: datetime) -> None:
        """Do nothing: what counts is epochs."""

    def run_epoch(self, run: Run, row: Row) -> None:
        """See :class:`~execution.column.Observer`."""
        former = self._updates.get(run.hash)
        self._updates[run.hash] = row["updates"]
        # Of a run that goes on from a checkpoint, the first epoch that is told was trained in part.
        if former is not None or row["epoch"] == 1:
            self._trained += (row["updates"] - (former or 0)) * self._task.batch_size

    def run_done(self, run: Run, outcome: str) -> None:
        """See :class:`~execution.column.Observer`."""
        del outcome  # a run that diverged has ended, too
        self._done += 1
        self._updates[run.hash] = self._task.updates
