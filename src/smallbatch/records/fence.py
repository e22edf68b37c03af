"""Keeps a process from writing a column that another has taken over: the file system itself does.

Each taking of a column's lock is an attempt. All that an attempt writes it begins in a folder of
its own, and renames from there to where it belongs. Whoever takes over renames that folder. From
then on no file is found that the former attempt opens or renames, however long its process was
paused; and no attempt makes its folder a second time.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smallbatch import durable, private
from smallbatch.errors import TakenOver

_FOLDER = re.compile(r"[0-9a-f]{16}(?:\.(\d{1,15})-([0-9a-f]{8}))?\.checkpoints")
"""An attempt's; without a number, that of a version of this package which knew no attempts."""


class _Attempt(NamedTuple):
    number: int
    token: str
    folder: Path


@dataclass(frozen=True)
class Fence:
    """One attempt at a column.

    Attributes:
        attempt: its number, one more than that of the column's last one; 0 if nothing is fenced.
        folder: its own, which holds the column's checkpoints; None if nothing is fenced.
        directory: of the column's result files.
    """

    attempt: int
    folder: Path | None
    directory: Path

    def check(self) -> None:
        """Make sure that nobody has taken over.

        Raises:
            TakenOver: this attempt's folder is gone.
            OSError: it cannot be looked for.
        """
        if self.folder is None:
            return
        work = self.folder.parent
        with suppress(OSError):  # opened, so that a network file system asks its server
            os.close(os.open(work, os.O_RDONLY | os.O_DIRECTORY))
        if self.folder.exists():
            return
        if attempts := _attempts(work, self.folder.name.split(".")[0]):
            raise _taken_over(self.directory, attempts[-1])
        raise TakenOver(f"{self.directory}: {self.folder} is gone; leaving the column")

    @contextmanager
    def writing(self) -> Generator[None]:
        """Write something inside: an error there is told as what it is, if others have taken over.

        Raises:
            TakenOver: another attempt has taken over.
        """
        self.check()
        try:
            yield
        except OSError:
            self.check()
            raise

    def draft(self, path: Path) -> Path:
        """The name in the attempt's folder by which a file is begun that then goes to a path."""
        return path if self.folder is None else self.folder / f"{path.parent.name}.{path.name}"

    def make(self, folder: Path) -> None:
        """Make a folder below the attempt's, but never the attempt's own.

        Raises:
            FileNotFoundError: the attempt's own is gone.
        """
        if self.folder is None:
            folder.mkdir(parents=True, exist_ok=True)
            return
        place = self.folder
        for name in folder.relative_to(place).parts:
            place /= name
            place.mkdir(exist_ok=True)

    def stage(self, directory: Path) -> Path:
        """Where a column's result files are made, beside their place: it may be on another disk."""
        mark = self.folder.name.split(".")[1] if self.folder else f"0-{secrets.token_hex(4)}"
        return directory.with_name(f"{directory.name}.{mark}.part")

    def clear(self) -> None:
        """The column is whole, its checkpoints can go."""
        if self.folder is not None:
            with suppress(OSError):
                durable.discard(self.folder)


OPEN = Fence(0, None, Path())
"""For files that are no column's."""


def raise_fence(work: Path, directory: Path, attempt: int, token: str) -> Fence:
    """Take over what the attempts before this one left, and keep them from writing more.

    Args:
        work: the work folder.
        directory: of the column's result files.
        attempt: the number of this one.
        token: 8 hex digits that tell it from another of that number: two processes may both
            believe for a moment to have the lock, and a damaged lock file forgets the number.

    Raises:
        TakenOver: there is a later attempt.
        UserError: what is there is a link that another user made.
        OSError: it cannot be renamed or removed.
    """
    key = column_key(work, directory)
    own = _Attempt(attempt, token, work / f"{key}.{attempt}-{token}.checkpoints")
    while True:
        former = [it.folder for it in _before(own, directory) if _usable(it.folder)]
        if not former:
            own.folder.mkdir()
            break
        with suppress(FileNotFoundError):  # another takes it over just now
            former[-1].rename(own.folder)
            break
    # Looked for again: of two that made their folders at once, at least one sees the other's.
    for it in _before(own, directory):
        durable.discard(it.folder)
    _remove_drafts(own.folder, key)
    _withdraw_stages(directory)
    return Fence(attempt, own.folder, directory)


def _remove_drafts(own: Path, key: str) -> None:
    """Remove files that former attempts have begun: a process that was paused may have one open."""
    drafts = _named(own.parent, rf"{key}\..*\.part")
    for place, folders, files in os.walk(own):  # follows no links
        drafts += [Path(place) / name for name in (*files, *folders) if name.endswith(".part")]
    for path in drafts:
        with suppress(OSError):
            durable.discard(path)


def _withdraw_stages(directory: Path) -> None:
    """Take away what former attempts were about to put in place; see `files._replace_folder`.

    They make no other, since each looks for its own folder when it has made its stage.
    """
    name = re.escape(directory.name)
    for stage in _named(directory.parent, rf"{name}\.\d+-[0-9a-f]{{8}}\.part.*"):
        gone = durable.set_aside(stage)
        if not directory.exists():  # that attempt came as far as the first of two renames
            with suppress(OSError):
                (gone / "old").rename(directory)
        durable.discard(gone)


def newest_attempt(work: Path, directory: Path) -> int:
    """The highest number of an attempt that left its folder; 0 if there is none."""
    return max((it.number for it in _attempts(work, column_key(work, directory))), default=0)


def withdraw(work: Path, directory: Path) -> Path:
    """Take a column's checkpoints away from all attempts; returns their folder.

    For progress that comes from elsewhere: nobody here writes that folder unasked, and the next
    attempt goes on from it. Whoever trains the column here ends.
    """
    key = column_key(work, directory)
    plain = work / f"{key}.checkpoints"
    *_, last = (None, *_attempts(work, key))
    if last and last.folder != plain:
        durable.discard(plain)
        last.folder.rename(plain)
    return plain


def plain(path: Path) -> Path:
    """A path as it is on every host: its folder of checkpoints named without an attempt."""
    return Path(*map(without_attempt, path.parts))


def column_key(work: Path, directory: Path) -> str:
    """16 hex digits that name a column by the place of its result files, seen from a work folder.

    Where a project is mounted does not matter: a container and its host take turns.
    """
    place = os.path.relpath(directory.absolute(), work.absolute())
    return hashlib.sha256(place.encode()).hexdigest()[:16]


def without_attempt(name: str) -> str:
    """The name of an attempt's folder as it would be of any other attempt; other names as is."""
    return f"{name.split('.')[0]}.checkpoints" if _FOLDER.fullmatch(name) else name


def _before(own: _Attempt, directory: Path) -> list[_Attempt]:
    """The attempts before one, or raises if there is one after it."""
    others = [it for it in _attempts(own.folder.parent, own.folder.name.split(".")[0]) if it != own]
    if others and others[-1] > own:
        raise _taken_over(directory, others[-1])
    return others


def _attempts(work: Path, key: str) -> list[_Attempt]:
    """The attempts at a column that have a folder, from the first to the last."""
    found = [(_FOLDER.fullmatch(path.name), path) for path in _named(work, rf"{key}\..*")]
    return sorted(_Attempt(int(it[1] or 0), it[2] or "", path) for it, path in found if it)


def _taken_over(directory: Path, by: _Attempt) -> TakenOver:
    return TakenOver(f"{directory}: attempt {by.number} has taken over; leaving it to them")


def _named(folder: Path, pattern: str) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / it.name for it in entries if re.fullmatch(pattern, it.name)]
    except FileNotFoundError:
        return []


def _usable(folder: Path) -> bool:
    """Whether the checkpoints in a folder are of this project, and it can take new ones."""
    private.refuse_links_of_others(folder)
    try:
        found = folder.stat()
    except FileNotFoundError:
        return False
    ours = stat.S_ISDIR(found.st_mode) and private.is_of_project(found, Path.cwd())
    return ours and os.access(folder, os.W_OK | os.X_OK)
