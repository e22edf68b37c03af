"""Files between a project and a node's workspace: which, and how one is written from pieces."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch import durable, private
from smallbatch.errors import TakenOver, UserError
from smallbatch.pipeline import experiments
from smallbatch.records.fence import column_key, newest_attempt, withdraw
from smallbatch.records.files import NAMES, replace_folder
from smallbatch.records.lock import Lock, one_writer

if TYPE_CHECKING:
    from smallbatch.pipeline.cluster.board import Task
    from smallbatch.pipeline.cluster.ray.letters import Piece

WORK = Path(".smallbatch/work")
PIECE = 2**23
"""Bytes of a message's piece of a file, at most."""


class Busy(UserError):  # noqa: N818 - the state of a column
    """A process of this project trains the column itself."""


@dataclass(frozen=True)
class Column:
    """Where the files of a column lie, in a project and in a workspace alike.

    Attributes:
        folder: Of its results.
        key: Of its checkpoints.
        runs: Hashes of its runs.
        base_lrs: Of its runs.
    """

    folder: Path
    key: str
    runs: frozenset[str]
    base_lrs: tuple[float, ...]

    def takes(self, name: str) -> bool:
        """Whether a file that a node sends is one of the column's: no other is written."""
        run = re.fullmatch(r"\.smallbatch/work/([0-9a-f]{16})/record", name)
        if run:
            return run.group(1) in self.runs
        # Never a folder of an attempt here, as `records.fence` names it: that is its own.
        kept = rf"\.smallbatch/work/{self.key}(\.system|\.timing"
        kept += r"|\.checkpoints/[0-9a-f]{16}/(plan|plan\.copy|[0-9a-f]{16}/\d{12}\.checkpoint))"
        return re.fullmatch(kept, name) is not None or self.is_result(name)

    def is_result(self, name: str) -> bool:
        """Whether a file is one of the results, which appear together."""
        return name in {f"{self.folder}/{it}" for it in NAMES}

    def kept(self) -> list[Path]:
        """What the project has of its progress: records, checkpoints."""
        found = [WORK / run / "record" for run in sorted(self.runs)]
        found += [WORK / f"{self.key}.{end}" for end in ("system", "timing")]
        found += sorted(durable.files_below(WORK / f"{self.key}.checkpoints"))
        return [it for it in found if it.is_file() and self.takes(str(it))]

    @contextmanager
    def held(self) -> Generator[Lock]:
        """Hold the column's lock.

        Raises:
            Busy: A process of this project has it.
        """

        def leave() -> None:
            raise Busy(f"{self.folder}: a process of this project trains it")

        with one_writer(WORK, self.folder, leave) as lock:
            yield lock

    def take_over(self) -> int:
        """Take the progress of former attempts for one elsewhere; returns the attempt's number.

        Raises:
            Busy: A process of this project trains the column.
        """
        with self.held() as lock:
            folder = withdraw(WORK, self.folder)
            with suppress(OSError):
                folder.rmdir()  # if nothing is in it
            return lock.attempt

    def is_trained_here(self) -> bool:
        """Whether a process of this project has taken the progress that came from elsewhere."""
        return newest_attempt(WORK, self.folder) > 0

    def forget_all_but(self, names: Collection[str]) -> None:
        """Remove checkpoints that a node no longer has."""
        for path in self.kept():
            if ".checkpoints/" in str(path) and str(path) not in names:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # not empty
                    for folder in (path.parent, *path.parent.parents):
                        if folder == WORK:
                            break
                        folder.rmdir()


def column_of(task: Task) -> Column:
    """The column of a task, in the project that is the working folder.

    Raises:
        UserError: The settings are wrong, or the learning rate of another column is not known.
    """
    study, folder = task.settings(), task.results
    rates = tuple(task.base_lrs or ())
    if not rates:
        source = experiments.MODELS / task.dataset / (study.best_of or task.study)
        rates = (experiments.best_base_lr(source / folder.name),)
    runs = experiments.run_hashes(study, task.batch_size, rates, task.seeds, task.fingerprint)
    return Column(folder, column_key(WORK, folder), frozenset(runs), rates)


class Receiver:
    """Writes the files of one attempt into the project, each whole or not at all.

    Args:
        column: Which files it may write.
        folder: For what is not whole yet.
        attempt: Its number among all attempts at the column, by `Column.take_over`.
    """

    def __init__(self, column: Column, folder: Path, attempt: int) -> None:
        self.column, self._folder, self._attempt = column, folder, attempt
        self.digests: dict[str, str] = {}
        self._came = 0

    def receive(self, head: Piece, body: bytes) -> bool:
        """Take the next piece of a file; returns whether the file is whole now, and kept.

        Records are always kept. Other progress is not where the column is trained here now.

        Raises:
            ValueError: A node sends what it should not.
            OSError: It cannot be written.
        """
        name, offset, size = head.name, head.offset, head.size
        if not self.column.takes(name):
            raise ValueError(f"{name[:200]!r} is no file of this column")
        if offset > size or offset not in (0, self._came):
            raise ValueError(f"{name}: a piece at {offset} of {size} bytes, after {self._came}")
        self._came = offset + len(body)
        self._folder.mkdir(exist_ok=True)
        part = self._folder / "incoming"
        with os.fdopen(private.open_shared(part, os.O_RDWR | os.O_CREAT), "r+b") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(body)
            if file.tell() < size:
                return False
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if digest != head.sha256:
            raise ValueError(f"{name}: it arrived damaged")
        self.digests[name] = digest
        target = Path(name)
        if target.name != "record" and self.column.is_trained_here():
            return False
        if self.column.is_result(name):
            target = self._folder / target.name
        private.refuse_links_of_others(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        part.replace(target)
        durable.sync_folder(target.parent)
        return True

    def place_results(self) -> bool:
        """Put the column's results in their place, together.

        Returns:
            False where a process of this project made or makes them since this attempt began:
            they are left alone, and are made from the records when they are wanted.
        """
        try:
            with self.column.held() as lock:
                if lock.attempt > self._attempt + 1:
                    return False
                found = [self._folder / name for name in NAMES if (self._folder / name).is_file()]
                replace_folder(self.column.folder, lambda part: _move(found, part), lock.fence)
                lock.fence.clear()
                return True
        except (Busy, TakenOver):
            return False
        finally:
            self.clear()

    def clear(self) -> None:
        """Remove what is not whole."""
        for name in ("incoming", *NAMES):
            (self._folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self._folder.rmdir()


def _move(files: Collection[Path], folder: Path) -> None:
    for file in files:
        try:
            file.replace(folder / file.name)
        except OSError:  # on another disk
            durable.write(folder / file.name, file.read_bytes())


def pieces(path: Path, size: int = PIECE) -> Iterator[tuple[int, int, bytes]]:
    """The offsets of a file's pieces, the size of the file, and the pieces; at least one."""
    with path.open("rb") as file:
        whole = os.fstat(file.fileno()).st_size
        for offset in range(0, max(whole, 1), size):
            body = file.read(min(size, whole - offset))
            if offset + len(body) < min(whole, offset + size):
                raise OSError(f"{path}: became shorter while it was read")
            yield offset, whole, body
