"""Files of our own, trusted only where no other user can have written them.

A cache, a lock or a compiled library that another user planted could run their code as ours, or
have us overwrite our own files through a link. So what is kept outside a project lies in a private
folder, and each file in it is looked at before it is used.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import os
import pwd
import stat
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from smallbatch.errors import UserError, shown

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_SAFE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # O_NONBLOCK: a FIFO is not waited for
_POLL_S = 0.05
_LINKS = 40  # as many as the kernel follows


class Untrusted(OSError):  # noqa: N818 - the state of a file
    """A file or folder that another user may have written, or that is none of its kind."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EPERM, why, str(path))


def make_folder(path: Path) -> Path:
    """Make a folder for this user alone, or make sure that it is one; returns its real path.

    A folder of this user that others may write loses their permission: files in it are looked at
    one by one all the same.

    Raises:
        Untrusted: It or a folder above it can be replaced or written by another user, or is
            behind a link of one.
        OSError: It cannot be made.
    """
    _check_links(path)
    for folder in reversed((path, *path.parents)):
        if not folder.exists():
            folder.mkdir(mode=0o700, exist_ok=True)
    real = path.resolve(strict=True)
    for folder in real.parents:
        _check_parent(folder)
    descriptor = os.open(real, os.O_RDONLY | os.O_DIRECTORY | _SAFE)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise Untrusted(real, "the folder belongs to another user")
        if found.st_mode & _OTHERS_WRITE:
            os.fchmod(descriptor, stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
    finally:
        os.close(descriptor)
    return real


def cache_folder(find: Callable[[], Path]) -> Path | None:
    """The folder that ``find`` names, made private; None, after one line, where there is none."""
    try:
        return make_folder(find())
    except OSError as error:
        say_once(
            f"{error.filename}: {error.strerror}: without a cache folder, kernels are compiled at "
            "every start; SMALLBATCH_CACHE can name another"
        )
        return None


@cache
def say_once(text: str) -> None:
    """Print a line, once in this process."""
    print(shown(text), file=sys.stderr, flush=True)


def read(path: Path) -> bytes:
    """The content of a file that this user alone can have written.

    Raises:
        FileNotFoundError: There is none.
        Untrusted: Another user may have written it, or it is a link or no regular file.
    """
    with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
        return file.read()


def read_shared(path: Path) -> bytes:
    """The content of a file in a project, which several users and hosts may share.

    It is this user's, root's, or of whom the project belongs to, whose folder is the working
    folder. Members of a group may write it, as umask 002 lets them.

    Raises:
        FileNotFoundError: There is none.
        Untrusted: Another user made it, or it is a link or no regular file.
    """
    with os.fdopen(open_shared(path, os.O_RDONLY), "rb") as file:
        if not is_of_project(os.fstat(file.fileno()), Path.cwd()):
            raise Untrusted(path, "the file belongs to another user")
        return file.read()


def is_of_project(found: os.stat_result, folder: Path) -> bool:
    """Whether a file is this user's, root's, or of whom the project's folder belongs to."""
    return found.st_uid in (0, os.geteuid(), folder.stat().st_uid)


def open_shared(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file in a project, whoever made it; returns its descriptor.

    Raises:
        Untrusted: It is a link or no regular file; or to be written, and has another name.
    """
    try:
        descriptor = os.open(path, flags | _SAFE, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # a link; a socket
            raise Untrusted(path, "a link or no regular file") from error
        raise
    found = os.fstat(descriptor)
    why = None
    if not stat.S_ISREG(found.st_mode):
        why = "no regular file"
    elif flags & os.O_ACCMODE != os.O_RDONLY and found.st_nlink > 1:
        why = "the file has another name elsewhere"  # of a file of ours, perhaps
    if why is not None:
        os.close(descriptor)
        raise Untrusted(path, why)
    return descriptor


def open_lock(path: Path) -> int:
    """Open a lock file in a project, made if there is none; returns its descriptor.

    Whoever may read a file may lock it, and keep it. So those alone may who may write its folder,
    and could as well replace the file.

    Raises:
        Untrusted: It is a link or no regular file, or has another name.
        OSError: It cannot be made.
    """
    descriptor = open_shared(path, os.O_RDWR | os.O_CREAT, mode=0o600)
    found = os.fstat(descriptor)
    mode = mode_for_writers(found, path.parent)
    if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
        with suppress(OSError):  # a file system that has one mode for all
            os.fchmod(descriptor, mode)
    return descriptor


def mode_for_writers(found: os.stat_result, folder: Path) -> int:
    """The mode of a file which those may read and write who may write its folder, and nobody else.

    Args:
        found: The status of the file.
        folder: Where it lies.
    """
    above = folder.stat()
    may = above.st_mode & _OTHERS_WRITE
    if found.st_gid != above.st_gid:
        may &= ~stat.S_IWGRP
    return 0o600 | may | may << 1


@contextmanager
def locked(path: Path, *, wait: float, check: Callable[[], None] = lambda: None) -> Generator[None]:
    """Keep other processes of this machine out, by a lock file in a private folder.

    Args:
        path: The lock file, which is made, and never removed.
        wait: Seconds to wait for another process, at most.
        check: Called while waiting; may raise.

    Raises:
        TimeoutError: Another process has it for that long.
        Untrusted: Another user may hold the file, or it is a link.
        OSError: It cannot be made.
    """
    until = time.monotonic() + wait
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
    try:
        while not _lock(descriptor):
            check()
            if time.monotonic() >= until:
                raise TimeoutError(errno.ETIMEDOUT, f"locked for over {wait:g} s", str(path))
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)  # with the lock


def hold(descriptor: int) -> int | None:
    """Lock a descriptor's file until this process ends; None, and closed, if another has it."""
    if _lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def open_own(path: Path, flags: int) -> int:
    """Open a file that this user alone can have written; returns its descriptor.

    Raises:
        Untrusted: Another user may have written it, or it is a link or no regular file.
    """
    descriptor = open_shared(path, flags, mode=0o600)
    found = os.fstat(descriptor)
    why = None
    if found.st_uid != os.geteuid():
        why = "the file belongs to another user"
    elif found.st_mode & _OTHERS_WRITE:
        why = "other users may write the file"
    elif found.st_nlink > 1:
        why = "the file has another name elsewhere"
    if why is not None:
        os.close(descriptor)
        raise Untrusted(path, why)
    return descriptor


def refuse_links_of_others(*paths: Path) -> None:
    """Make sure that what is written in a project, and what it replaces, lies where it seems to.

    Links of this user and of root are followed: results may lie on another disk.

    Raises:
        UserError: Another user made one of the links on the way.
    """
    for path in paths:
        for link in _links(path):
            if link.lstat().st_uid not in (0, os.geteuid()):
                raise UserError(
                    f"{link}: a link that another user made, to {link.readlink()}; results are "
                    "written through links of this user alone: remove it"
                )


def _check_links(path: Path) -> None:
    """Refuse links on the way that another user made, or can replace."""
    for link in _links(path):
        if link.lstat().st_uid not in (0, os.geteuid()):
            raise Untrusted(link, "a link of another user")
        _check_parent(link.parent)


def _links(path: Path) -> Iterator[Path]:
    """The links on the way to a path, in the order in which they are followed."""
    here, left, followed = Path("/"), [*reversed(path.absolute().parts[1:])], 0
    while left:
        name = left.pop()
        if name == "..":
            here = here.parent
            continue
        step = here / name
        if not step.is_symlink():
            here = step
            continue
        yield step
        followed += 1
        if followed > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = step.readlink()
        here = Path("/") if target.is_absolute() else here
        left += [it for it in reversed(target.parts) if it != "/"]


def _check_parent(folder: Path) -> None:
    """Whoever may write a folder may replace what is in it, unless it is sticky as /tmp is."""
    found = folder.stat()
    if found.st_uid not in (0, os.geteuid()):
        raise Untrusted(folder, "the folder belongs to another user")
    if found.st_mode & stat.S_ISVTX:
        return
    group = found.st_mode & stat.S_IWGRP and not _is_own_group(found.st_gid, found.st_uid)
    if found.st_mode & stat.S_IWOTH or group:
        raise Untrusted(folder, "other users may write the folder")


@cache
def _is_own_group(group: int, owner: int) -> bool:
    """Whether a group that may write a folder of this owner has no member but this user and root.

    Many systems give each user such a group, and umask 002.
    """
    if owner == group == 0:
        return True
    user, primary, members = os.geteuid(), os.getegid(), list[str]()
    with suppress(KeyError):  # a container may have no entries
        primary = pwd.getpwuid(user).pw_gid
    with suppress(KeyError):
        members = grp.getgrgid(group).gr_mem
    trusted = {entry.pw_name for entry in pwd.getpwall() if entry.pw_uid in (0, user)}
    others = any(it.pw_gid == group and it.pw_name not in trusted for it in pwd.getpwall())
    return group == primary and trusted.issuperset(members) and not others
