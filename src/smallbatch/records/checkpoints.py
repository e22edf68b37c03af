"""Checkpoints of runs that are computed together: the last two, whole, never a pickle.

A trainer that can stop and go on implements :class:`Resumable` and calls
:meth:`Checkpoints.begin` before its first update and :meth:`Checkpoints.between` after every one.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from smallbatch import durable, private
from smallbatch.errors import Stopping, UserError, is_out_of_memory, shown
from smallbatch.records.fence import OPEN, Fence, column_key, without_attempt

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
"""Checkpoints of a chunk: should the newest be damaged, the one before serves."""


@dataclass(frozen=True)
class State:
    """All that a trainer needs to go on as if it had never stopped.

    Attributes:
        runs: hashes of the runs that still train, in the order of their lanes.
        update: updates done.
        tensors: weights, statistics, running sums, random generators.
        content: the rest, as JSON holds it: rows, counters.
    """

    runs: tuple[str, ...]
    update: int
    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any]


class Resumable(Protocol):
    """A trainer between two updates."""

    def state(self) -> State:
        """Everything that the updates and rows to come depend on."""
        ...

    def restore(self, state: State) -> None:
        """Take over the state of a trainer of the same runs."""
        ...


class Keeper(Protocol):
    """Who looks after a trainer's state."""

    def begin(self, trainer: Resumable) -> None:
        """Before the first update: restore what was kept."""
        ...

    def between(self, trainer: Resumable) -> None:
        """Between updates, or the batches of an evaluation: keep the state when it is time.

        Raises:
            Stopping: the training is to end here; the state is kept.
        """
        ...


class KeepNothing:
    """For trainings that nobody interrupts."""

    def begin(self, trainer: Resumable) -> None:
        """See :class:`Keeper`."""

    def between(self, trainer: Resumable) -> None:
        """See :class:`Keeper`."""


class Checkpoints:
    """The checkpoints of one chunk of runs, in a folder of their own.

    Args:
        folder: where they lie; made when the first is written.
        interval: seconds from one to the next.
        stopping: whether the training is to end.
        fence: of the attempt whose checkpoints they are.

    Attributes:
        saved: the state found in the folder, None where there is none.
        started: when the chunk's training began, ISO 8601.
        seconds: that training took before this attempt.

    Raises:
        UserError: another user made a link on the way to the folder; so do all methods that
            write or remove. `TakenOver`, of those that write, if another attempt has taken over.
    """

    def __init__(
        self,
        folder: Path,
        interval: float,
        stopping: Callable[[], bool],
        fence: Fence = OPEN,
    ) -> None:
        self.folder, self.interval, self.stopping = folder, interval, stopping
        self._fence = fence
        self.seconds = 0.0
        self.started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.saved = self._newest()
        self._complained = False
        self.start_clock()

    def start_clock(self) -> None:
        """The chunk's turn has come: from now on its time counts."""
        if self.saved is None:
            self.started = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._clock = time.monotonic()
        self._due = self._clock + self.interval

    @property
    def elapsed(self) -> float:
        """Seconds that the chunk has trained, in all attempts."""
        return self.seconds + time.monotonic() - self._clock

    def begin(self, trainer: Resumable) -> None:
        """See :class:`Keeper`.

        Raises:
            UserError: what was kept is whole but not this trainer's; it is gone now.
        """
        if self.saved is None:
            return
        try:
            trainer.restore(self.saved)
        # Content that nobody but another version of the code would write.
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            self.clear()
            raise UserError(
                f"{self.folder}: its checkpoints are not of this code ({type(error).__name__}: "
                f"{error}) and were removed; the same command begins these runs again"
            ) from error

    def between(self, trainer: Resumable) -> None:
        """See :class:`Keeper`."""
        stopping = self.stopping()
        if stopping or time.monotonic() >= self._due:
            self._save(trainer.state())
            self._due = time.monotonic() + self.interval
        if stopping:
            raise Stopping

    def forget(self) -> None:
        """Begin the chunk anew."""
        self.clear()
        self.saved, self.seconds = None, 0.0

    def clear(self) -> None:
        """The chunk is done, its runs are kept elsewhere."""
        private.refuse_links_of_others(self.folder)
        with suppress(OSError):
            durable.discard(self.folder)

    def _save(self, state: State) -> None:
        private.refuse_links_of_others(self.folder)
        envelope = {
            "runs": state.runs,
            "update": state.update,
            "started": self.started,
            "seconds": self.elapsed,
            "content": state.content,
        }
        path = self.folder / f"{state.update:012}.checkpoint"
        try:
            with self._fence.writing():
                self._fence.make(self.folder)
                durable.seal(path, state.tensors, envelope, of=_name(self.folder))
        except OSError as error:  # a full disk costs the checkpoint, not the training
            if not self._complained:
                _say(f"{path}: cannot be written ({error.strerror}); training goes on without it")
            self._complained = True
            return
        for old in self._paths()[KEPT:]:
            _remove(old)

    def _newest(self) -> State | None:
        private.refuse_links_of_others(self.folder)
        for path in self._paths():
            try:
                tensors, envelope = _unseal(path, self.folder)
                self.started, self.seconds = str(envelope["started"]), float(envelope["seconds"])
                runs, update = tuple(envelope["runs"]), int(envelope["update"])
                return State(runs, update, tensors, envelope["content"])
            except (ValueError, TypeError, KeyError) as error:
                _say(f"warning: {path}: damaged: {error}; going back to the checkpoint before it")
                _remove(path)
        return None

    def _paths(self) -> list[Path]:
        """From the newest to the oldest."""
        found: list[Path] = []
        # Not by `glob`, which fails if the folder goes meanwhile.
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found = [it for it in self.folder.iterdir() if it.suffix == ".checkpoint"]
        return sorted(found, reverse=True)


@dataclass(frozen=True)
class ChunkPlan:
    """Which runs of a column are computed together, kept until the column is whole.

    A model under `torch.vmap` rounds differently with other lanes beside it, so whoever takes a
    column up again must group its runs as they were.

    Args:
        folder: of the column's checkpoints, those of one version of the code.
        fence: of the attempt whose plan it is.
    """

    folder: Path
    fence: Fence = OPEN

    def read(self) -> list[list[str]]:
        """Run hashes of each chunk; none where nothing was kept.

        Raises:
            OSError: what was kept cannot be read.
            UserError: another user made a link on the way to it.
        """
        private.refuse_links_of_others(self.folder)
        for path in self._paths:
            try:
                _, content = _unseal(path, self.folder)
                return [[str(run) for run in chunk] for chunk in content["chunks"]]
            except FileNotFoundError:
                continue
            except (ValueError, TypeError, KeyError) as error:
                _say(f"warning: {path}: damaged: {error}; going back to its copy")
        return []

    def write(self, chunks: Sequence[Sequence[str]]) -> None:
        """Keep the chunks.

        Raises:
            OSError: they cannot be written.
            UserError: another user made a link on the way to their folder.
            TakenOver: another attempt has taken over.
        """
        private.refuse_links_of_others(self.folder)
        content = {"chunks": [list(chunk) for chunk in chunks]}
        with self.fence.writing():
            self.fence.make(self.folder)
            for path in self._paths:
                durable.seal(path, {}, content, of=_name(self.folder))

    def has_checkpoints(self) -> bool:
        """Whether an earlier attempt left any, whole or not."""
        return any(path.suffix == ".checkpoint" for path in durable.files_below(self.folder))

    def chunk_folder(self, runs: Sequence[str]) -> Path:
        """Where the checkpoints of a chunk lie."""
        return self.folder / hashlib.sha256(",".join(runs).encode()).hexdigest()[:16]

    @property
    def _paths(self) -> tuple[Path, Path]:
        # Without its plan a column's checkpoints would belong to nobody: two copies.
        return self.folder / "plan", self.folder / "plan.copy"


def plan(fence: Fence, made_by: str) -> ChunkPlan:
    """The plan of an attempt at a column under one version of the code."""
    version = hashlib.sha256(made_by.encode()).hexdigest()[:16]
    return ChunkPlan((fence.folder or Path()) / version, fence)


def system_file(work: Path, directory: Path) -> Path:
    """Where the samples of a column's use of the machine are kept, likewise."""
    return work / f"{column_key(work, directory)}.system"


def timing_file(work: Path, directory: Path) -> Path:
    """Where a column's timing is kept, for when its results are made again from records."""
    return work / f"{column_key(work, directory)}.timing"


def _unseal(path: Path, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return durable.unseal(private.read_shared(path), of=_name(folder))
    except private.Untrusted as error:
        raise durable.Damaged(error.strerror) from error


def _name(folder: Path) -> str:
    """What a folder's files are of: a column or a chunk of it, and the version of the code."""
    return f"{without_attempt(folder.parent.name)}/{folder.name}"


def _remove(path: Path) -> None:
    with suppress(OSError):  # a folder, of whoever made it
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr, flush=True)
