"""Passes on to MLflow what nodes write of the columns that they train.

The files may be of another version, or damaged. What the mirror could not use is left out here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from smallbatch import private
from smallbatch.pipeline.cluster.journal import EVENTS
from smallbatch.records.schema import MOST, StudySettings
from smallbatch.tracking.place import place_of
from smallbatch.tracking.records import ColumnInfo, RunInfo

if TYPE_CHECKING:
    from pathlib import Path

    from smallbatch.pipeline.cluster.board import Board, Task
    from smallbatch.tracking import LiveMirror

_MOST_BYTES = 4 * 2**20  # that are read at once; of a longer line nothing is passed on
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_Time = Annotated[float, Field(ge=0, le=1e11)]  # seconds since 1970
_Count = Annotated[int, Field(ge=1, le=MOST)]
_Value = Annotated[float, Field(allow_inf_nan=True)]  # of a run that diverges


def _of_an_epoch(row: Mapping[str, float]) -> Mapping[str, float]:
    if not 1 <= row.get("epoch", 0) <= MOST:
        raise ValueError("epoch: allowed: from 1")
    return row


@dataclass(frozen=True, kw_only=True)
class _Start(ColumnInfo):
    __pydantic_config__ = _STRICT
    batch_size: _Count
    settings: StudySettings
    kind: Literal["start"]
    time: _Time


@dataclass(frozen=True)
class _Begin:
    __pydantic_config__ = _STRICT
    kind: Literal["begin"]
    run: str
    time: _Time


@dataclass(frozen=True)
class _Run(RunInfo):
    __pydantic_config__ = _STRICT
    base_lr: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class _Epoch:
    __pydantic_config__ = _STRICT
    kind: Literal["epoch"]
    run: _Run
    row: Annotated[Mapping[str, _Value], AfterValidator(_of_an_epoch)]
    time: _Time


_MESSAGE: TypeAdapter[_Start | _Begin | _Epoch] = TypeAdapter(
    Annotated[_Start | _Begin | _Epoch, Field(discriminator="kind")]
)


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
        self._forward(task, self._new_lines(task.key, path))

    def kill(self, task: Task) -> None:
        """Have its runs marked as killed, of which perhaps another process told MLflow."""
        path = self._board.folder_of(task.key) / EVENTS
        self._forward(task, self._new_lines(task.key, path)[:1])
        self.ended(task, killed=True)

    def _forward(self, task: Task, lines: Iterable[bytes]) -> None:
        for line in lines:
            try:
                message = _MESSAGE.validate_json(line)
            except ValidationError:
                continue
            if isinstance(message, _Start):
                # On a node the column's folder may be elsewhere.
                message = replace(message, place=place_of(task.results))
            self._mirror.forward(task.key, asdict(message))

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
            descriptor = private.open_shared(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError, PermissionError, private.Untrusted):
            return []
        with os.fdopen(descriptor, "rb") as file:
            first = file.readline(_MOST_BYTES)  # has the moment, so it differs between attempts
            former, position = self._read.get(key, (first, 0))
            start = position if former == first else 0
            file.seek(start)
            found = file.read(_MOST_BYTES)
        whole, end, _ = found.rpartition(b"\n")
        if end:  # else not even the first line is complete
            self._read[key] = first, start + len(whole) + 1
        elif len(found) == _MOST_BYTES:  # a part of a line that is too long
            self._read[key] = first, start + len(found)
        return whole.split(b"\n")
