"""Passes on to MLflow what nodes write of the columns that they train."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smallbatch.pipeline.cluster.journal import EVENTS
from smallbatch.pipeline.experiments import MODELS
from smallbatch.tracking.place import place_of

if TYPE_CHECKING:
    from pathlib import Path

    from smallbatch.pipeline.cluster.board import Board, Task
    from smallbatch.tracking import LiveMirror


class News:
    """Reads events as they are written, and passes each on once.

    Args:
        board: The board.
        mirror: Who is told.
    """

    def __init__(self, board: Board, mirror: LiveMirror) -> None:
        self._board, self._mirror = board, mirror
        self._read: dict[str, tuple[bytes, int]] = {}  # first line, bytes, by task

    def pass_on(self, task: Task) -> None:
        """What is new of a task."""
        path = self._board.folder_of(task.key) / EVENTS
        for line in self._new_lines(task.key, path):
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if message.get("kind") == "start":
                # On a node the column's folder may be elsewhere.
                folder = MODELS / task.dataset / task.study / f"m{task.batch_size}"
                message["place"] = place_of(folder)
            self._mirror.forward(task.key, message)

    def ended(self, task: Task, *, killed: bool) -> None:
        """Nothing more is passed on of a task; its runs are marked as killed, or left as they are.

        Args:
            task: The task.
            killed: Whether they never ended.
        """
        if task.key in self._read:
            self._mirror.forward(task.key, {"kind": "kill" if killed else "drop"})

    def _new_lines(self, key: str, path: Path) -> list[bytes]:
        try:
            with path.open("rb") as file:
                first = file.readline()  # it has the moment, so it differs between attempts
                former, position = self._read.get(key, (first, 0))
                file.seek(position if former == first else 0)
                start = file.tell()
                whole, end, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        if end:  # else not even the first line is complete
            self._read[key] = first, start + len(whole) + 1
        return whole.splitlines()
