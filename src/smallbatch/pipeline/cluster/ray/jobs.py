"""The tasks that a keeper has handed out, and what their nodes say becomes of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from smallbatch import private
from smallbatch.errors import INTERRUPTED, OUT_OF_TIME, UserError, first_line, shown
from smallbatch.pipeline.cluster.board import State, Status
from smallbatch.pipeline.cluster.journal import EVENTS
from smallbatch.pipeline.cluster.ray import letters
from smallbatch.pipeline.cluster.ray.files import Column, Receiver
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.pipeline.cluster.board import Board, Task

ATTEMPTS = 3
"""Attempts in a row that leave no progress, after which a task has failed."""
_MESSAGE = 400
_NOT_PLACED = "its runs are kept; its folder is left as a process of this project made it meanwhile"


@dataclass
class Job:
    """One attempt at a task.

    Attributes:
        task: The task.
        attempt: Its number.
        column: Where the column's files lie.
        receiver: Writes them.
        barren: Attempts before this one, in a row, that left nothing.
        ref: Ray's reference to how it ends.
        node: Where it runs.
        progress: Files that it has sent.
        fault: What went wrong with what it sent.
        offered: Names of files that it begins with.
    """

    task: Task
    attempt: int
    column: Column
    receiver: Receiver
    barren: int = 0
    ref: Any = None
    node: str = ""
    progress: int = 0
    fault: str = ""
    offered: list[str] = field(default_factory=list[str])


class Jobs:
    """What nodes say, written to the board and into the project.

    Args:
        board: The board, whose lock the caller of every method holds.
    """

    def __init__(self, board: Board) -> None:
        self.board = board
        self.running: dict[str, Job] = {}

    def is_current(self, job: Job) -> bool:
        """Whether nobody has cancelled or ended the task, or submitted it again."""
        state = self.board.state(job.task.key)
        of = (job.task.number, job.attempt)
        if state is None or (state.number, state.attempt) != of:
            return False
        return state.status in ("queued", "running")

    def begin(
        self, task: Task, column: Column, former: Job | None, offered: list[str], number: int
    ) -> Job:
        """The next attempt at a task, which waits for a node.

        Args:
            task: The task.
            column: Its column.
            former: The attempt before, if it was this keeper's.
            offered: Names of files that it begins with.
            number: Of this attempt among all at the column, by `Column.take_over`.
        """
        state, key = self.board.state(task.key), task.key
        attempt = 1 + (state.attempt if state and state.number == task.number else 0)
        receiver = Receiver(column, self.board.folder_of(key) / "incoming", number)
        receiver.clear()
        job = Job(task, attempt, column, receiver, offered=offered)
        job.barren = former.barren if former else 0
        message = state.message if state and former else ""
        self.board.set_state(key, State(task.number, attempt).now(message=message))
        (self.board.folder_of(key) / EVENTS).unlink(missing_ok=True)
        self.running[key] = job
        return job

    def say(self, job: Job, message: str) -> None:
        """Say what a task waits for."""
        self._tell(job, "queued", message)

    def read(self, text: str, body: bytes) -> None:
        """Take a message, unless it is of an attempt that is over."""
        who = letters.sender(text)
        job = self.running.get(who[0]) if who else None
        if job is None or who != (job.task.key, (job.task.number, job.attempt)):
            return
        if not job.fault and self.is_current(job):
            try:
                self._apply(job, letters.read(text), body)
            except (ValueError, TypeError, OSError, UserError) as error:
                job.fault = f"{job.node or 'a node'}: {first_line(error)}"

    def faulty(self) -> list[Job]:
        """Attempts that are to end, as what they sent cannot be taken."""
        return [job for job in self.running.values() if job.fault]

    def _apply(self, job: Job, letter: letters.Letter, body: bytes) -> None:
        match letter:
            case letters.News():
                state = letter.as_state()
                job.node = state.node
                if state.status == "running":  # how it ends is told by how the worker ends
                    self._set(job, state)
            case letters.More():
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                path = self.board.folder_of(job.task.key) / letter.name
                with os.fdopen(private.open_shared(path, flags), "ab") as file:
                    file.write(body)
            case letters.Piece():
                if job.receiver.receive(letter, body):
                    job.progress += 1
            case letters.Kept():
                job.column.forget_all_but(letter.names)
            case letters.Sign():
                pass

    def end(self, job: Job, result: object, trouble: str = "") -> bool:
        """An attempt has ended; returns whether the task needs another.

        Args:
            job: The attempt.
            result: What the node says of its end; None where it was lost.
            trouble: Why it was lost, then.
        """
        del self.running[job.task.key]
        if not self.is_current(job):
            job.receiver.clear()
            return False
        said, exit_code = trouble, None
        if result is not None and (end := self._read_end(job, result)):
            exit_code, said = end.exit, f"{shown(end.said)[:_MESSAGE]}"
            if exit_code == 0 and not (job.fault or self._lacks(job, end.files)):
                try:
                    placed = job.receiver.place_results()
                except (OSError, UserError) as error:
                    job.fault = str(error)
                else:
                    share = {"runs_done": job.task.runs, "share": 1.0}
                    self._tell(job, "done", "" if placed else _NOT_PLACED, **share)
                    return False
            elif exit_code == 2:
                self._tell(job, "failed", said)
                return False
        if exit_code in (INTERRUPTED, OUT_OF_TIME):
            said = f"stopped on {said}"
        return self._again(job, job.fault or said)

    @staticmethod
    def _read_end(job: Job, result: object) -> letters.End | None:
        try:
            return letters.read_end(result)
        except ValueError as error:
            job.fault = job.fault or f"{job.node or 'a node'}: {error}"
            return None

    def _again(self, job: Job, said: str) -> bool:
        job.barren = 0 if job.progress else job.barren + 1
        if job.barren >= ATTEMPTS:
            much = count(job.barren, "attempt")
            self._tell(job, "failed", f"{much} left no progress; the last: {said}")
            return False
        self._tell(job, "queued", f"goes on elsewhere: {said}")
        return True

    @staticmethod
    def _lacks(job: Job, files: Mapping[str, str]) -> bool:
        """Whether something that the node has did not come."""
        kept = {str(it) for it in job.column.kept()}
        came = job.receiver.digests
        for name, digest in files.items():
            if came.get(name, digest if name in kept else None) != digest:
                job.fault = f"{job.node}: {name} did not arrive"
                return True
        return False

    def _set(self, job: Job, state: State) -> None:
        number, message = job.task.number, state.message[:_MESSAGE]
        state = replace(state, number=number, attempt=job.attempt, message=message)
        self.board.set_state(job.task.key, state)

    def _tell(self, job: Job, status: Status, message: str, **changes: Any) -> None:
        state = self.board.state(job.task.key) or State(job.task.number)
        self._set(job, state.now(status=status, message=message, **changes))
