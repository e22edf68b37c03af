"""The board: which columns a cluster is to train, and how far each of them is.

Each column has a folder below `.smallbatch/cluster`. Who submits writes `task-<number>.json`,
whoever trains it `state.json` and `events.jsonl`, a scheduler `job.json` with what it needs to know
of its own job. All are replaced whole, so that any process may read them at any time. What was
written by another version, or damaged, or is no regular file, counts as if it was not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from smallbatch import durable, private
from smallbatch.config.params import parse_study
from smallbatch.errors import UserError
from smallbatch.pipeline.experiments import MODELS, PREPARED

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig

FOLDER = Path(".smallbatch/cluster")

Status = Literal["queued", "running", "done", "failed", "stopped", "cancelled", "lost"]
FINAL: tuple[Status, ...] = ("done", "failed", "cancelled")
"""After them a task is carried out no further; it can be submitted again."""

_TASK = re.compile(r"task-(\d{1,9})\.json")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*-m\d{1,10}(-[0-9a-f]{16})?")
"""Of a column of the pipeline, or with its run's hash of a run outside."""
_POLL_S = 0.1
_MOST_BYTES = 4 * 2**20  # of a file that is read
_MOST_CHARACTERS = 1000  # of a text
_Kind = TypeVar("_Kind")

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_Number = Annotated[int, Field(ge=0, lt=10**9)]  # as many digits as in a file's name
_Seed = Annotated[int, Field(ge=0, lt=2**32)]
_Count = Annotated[int, Field(ge=1, le=2**53)]
_Text = Annotated[str, AfterValidator(lambda text: text[:_MOST_CHARACTERS])]
_Share = Annotated[float, AfterValidator(lambda share: min(max(share, 0.0), 1.0))]
_Speed = Annotated[float, Field(ge=1e-9, le=1e12)]  # so that the time that is left is finite
_Rate = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Task:
    """A column that is to be trained elsewhere.

    Attributes:
        key: Its name on the board.
        study: The study's name.
        batch_size: m.
        params: The content of the params file when it was submitted; of a run outside the pipeline
            its study and ``compute`` alone.
        origin: The name of that file.
        base_lrs: Its base learning rates; None: the best one of the column that it comes ``after``.
        stage: The name of the DVC stage.
        after: The key of the column that has to be complete first.
        runs: The number of its runs.
        updates: Of each run.
        needs: What a node must have to train it: the digest of the code, versions of libraries.
        dataset: The name of the prepared data.
        fingerprint: The SHA-256 of its content.
        cluster: ``ray`` or ``slurm``.
        wanted: A digest of the runs: tasks with the same one lead to the same column.
        number: Of the submission; each of one column has a higher one than those before.
        submitted: When, ISO 8601.
        seed: Of a run outside the pipeline; None: it is a column of the grid.
        prepared: The folder of the prepared data; empty: the pipeline's.
        folder: That of its result files; empty: the pipeline's.
    """

    __pydantic_config__ = _STRICT  # when it is made from a file

    key: _Text
    study: _Text
    batch_size: _Count
    params: Mapping[str, Any]
    origin: _Text
    base_lrs: Sequence[_Rate] | None
    stage: _Text | None
    after: _Text | None
    runs: _Count
    updates: _Count
    needs: Mapping[str, _Text]
    dataset: _Text
    fingerprint: _Text
    cluster: _Text
    wanted: _Text = ""
    number: _Number = 1
    submitted: _Text = ""
    seed: _Seed | None = None
    prepared: _Text = ""
    folder: _Text = ""

    @property
    def images(self) -> Path:
        """The folder of the prepared data."""
        return Path(self.prepared) if self.prepared else PREPARED / self.dataset

    @property
    def results(self) -> Path:
        """The folder of its result files."""
        pipeline = MODELS / self.dataset / self.study / f"m{self.batch_size}"
        return Path(self.folder) if self.folder else pipeline

    @property
    def seeds(self) -> Sequence[int]:
        """Of its runs."""
        of_one = None if self.seed is None else [self.seed]
        return of_one or range(self.settings().seeds or self.params["grid"]["seeds"])

    def settings(self) -> StudyConfig:
        """Those of its study.

        Raises:
            UserError: There are none, or they are wrong.
        """
        studies = self.params.get("studies", {})
        if self.study not in studies:
            raise UserError(f"{self.origin}: studies: found no {self.study!r}")
        return parse_study(studies[self.study], f"{self.origin}: studies.{self.study}")


@dataclass(frozen=True)
class State:
    """How far a task is.

    Attributes:
        number: Of the submission.
        attempt: How often its training was begun; who has a lower one writes no state.
        status: `lost` is a task that no longer runs and did not end.
        node: Where it runs.
        device: On what.
        message: One line, of what went wrong or is waited for.
        started: When this attempt began, ISO 8601.
        told: When this was written.
        runs_done: Runs that have ended.
        share: Of the column's updates, 0 to 1.
        images_per_second: Of this attempt.
    """

    __pydantic_config__ = _STRICT  # when it is made from a file

    number: _Number
    attempt: _Number = 0
    status: Status = "queued"
    node: _Text = ""
    device: _Text = ""
    message: _Text = ""
    started: _Text = ""
    told: _Text = ""
    runs_done: _Number = 0
    share: _Share = 0.0
    images_per_second: _Speed | None = None

    def now(self, **changes: Any) -> State:
        """A copy with changes, told now."""
        return replace(self, told=datetime.now(UTC).isoformat(timespec="seconds"), **changes)


class Scheduler(Protocol):
    """Who carries tasks out. Its methods are called by whoever holds the board's lock."""

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take over tasks that are on the board as queued.

        Raises:
            UserError: It cannot; the reason in one line.
        """
        ...

    def refresh(self) -> None:
        """Correct states of which the scheduler knows better: what vanished is `lost`."""
        ...

    def cancel(self, keys: Collection[str]) -> None:
        """End tasks; their states become `cancelled`."""
        ...


class Board:
    """The tasks of a project and their states.

    Args:
        folder: Where it lies; made when the first task is put there.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def folder_of(self, key: str) -> Path:
        """The folder of a task.

        Raises:
            UserError: The key is none.
        """
        if not _KEY.fullmatch(key):
            raise UserError(
                f"{self.folder}: found the task {key[:80]!r}, allowed: DATASET-STUDY-mM[-RUN]"
            )
        return self.folder / key

    def file_of(self, task: Task) -> Path:
        """The file that `smallbatch work` is given; gone when a later submission replaced it."""
        return self.folder_of(task.key) / f"task-{task.number}.json"

    def put(self, task: Task) -> Task:
        """Put a task on the board as queued, in place of an earlier submission; numbers it.

        Raises:
            UserError: There is no higher number than that of an earlier submission.
        """
        folder = self.folder_of(task.key)
        private.refuse_links_of_others(folder)
        folder.mkdir(parents=True, exist_ok=True)
        former = [number for number, _ in self._files(folder)]
        state = self.state(task.key)
        number = 1 + max([*former, state.number if state else 0])
        if number >= 10**9:
            raise UserError(f"{folder}: found the submission {number - 1}, the last: remove it")
        moment = datetime.now(UTC).isoformat(timespec="seconds")
        task = replace(task, number=number, submitted=moment)
        for _, path in self._files(folder):
            make_way(path)
        for name in ("job.json", "events.jsonl"):
            make_way(folder / name)
        self.set_state(task.key, State(number))
        _write(self.file_of(task), asdict(task))
        return task

    def task(self, key: str) -> Task | None:
        """The latest submission of a column; None if there is none that can be read."""
        files = self._files(self.folder_of(key))
        return read_task(files[-1][1]) if files else None

    def tasks(self) -> list[Task]:
        """The latest submission of each column, in the order of their keys."""
        with suppress(FileNotFoundError, NotADirectoryError):
            names = sorted(entry.name for entry in os.scandir(self.folder) if entry.is_dir())
            found = (self.task(name) for name in names if _KEY.fullmatch(name))
            return [task for task in found if task is not None]
        return []

    def state(self, key: str) -> State | None:
        """How far a task is; None if that cannot be read."""
        return _parsed(_STATE, self.folder_of(key) / "state.json")

    def set_state(self, key: str, state: State) -> None:
        """Replace a task's state."""
        _write(self.folder_of(key) / "state.json", asdict(state))

    def job(self, key: str) -> dict[str, Any]:
        """What the scheduler noted of its job; empty if there is nothing."""
        try:
            found = json.loads(_read(self.folder_of(key) / "job.json"))
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def set_job(self, key: str, job: Mapping[str, Any]) -> None:
        """Replace the scheduler's note."""
        _write(self.folder_of(key) / "job.json", job)

    @contextmanager
    def lock(self, check: Callable[[], None] = lambda: None) -> Generator[None]:
        """Keep other processes of this machine from submitting, cancelling and refreshing.

        Args:
            check: Called while waiting; may raise.
        """
        private.refuse_links_of_others(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        file = private.open_lock(self.folder / "lock")
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    check()
                    time.sleep(_POLL_S)
            yield
        finally:
            os.close(file)

    @staticmethod
    def _files(folder: Path) -> list[tuple[int, Path]]:
        """Numbers and files of the submissions in a folder, the latest last."""
        with suppress(FileNotFoundError, NotADirectoryError):
            found = ((_TASK.fullmatch(path.name), path) for path in folder.iterdir())
            return sorted((int(it.group(1)), path) for it, path in found if it)
        return []


def read_task(path: Path) -> Task | None:
    """A task's file; None if there is none, or it is damaged or of another task."""
    task = _parsed(_TASK_FILE, path)
    named = task and (task.key, f"task-{task.number}.json") == (path.parent.name, path.name)
    return task if named else None


def make_way(path: Path) -> None:
    """Remove a file or a link; a folder, which nobody but a stranger put there, is put aside.

    Raises:
        OSError: It cannot be.
    """
    if path.is_dir() and not path.is_symlink():
        durable.set_aside(path)
    else:
        path.unlink(missing_ok=True)


_STATE, _TASK_FILE = TypeAdapter(State), TypeAdapter(Task)


def _parsed(kind: TypeAdapter[_Kind], path: Path) -> _Kind | None:
    try:
        return kind.validate_json(_read(path))
    except ValidationError:  # of another version of the package
        return None


def _read(path: Path) -> bytes:
    """A file's content; nothing of one that is not there, cannot be trusted or is too large."""
    try:
        return private.read_shared(path) if path.lstat().st_size <= _MOST_BYTES else b""
    except (FileNotFoundError, NotADirectoryError, PermissionError, private.Untrusted):
        return b""


def _write(path: Path, content: Mapping[str, Any]) -> None:
    if path.is_dir():  # which no file can replace
        make_way(path)
    # A name of a file may have characters that are none of Unicode; readers would refuse them.
    text = json.dumps(content, indent=1, ensure_ascii=False)
    durable.write(path, f"{text}\n".encode(errors="replace"))
