"""Writes files completely or not at all, even if the process is killed or power fails."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_DIGEST_BYTES = hashlib.sha256().digest_size
_LITTER = (".DS_Store", ".gitignore", ".nfs", "._", "Thumbs.db", "desktop.ini")
"""With what the names of files begin that systems and tools leave in any folder."""
_LENGTH_BYTES = 8  # of safetensors' little-endian header length
_MOST_HEADER = 100_000_000  # bytes, which is safetensors' own limit


class Damaged(ValueError):  # noqa: N818 - the state of a file
    """A sealed file is not as it was written."""


class Misplaced(Damaged):
    """A sealed file was copied or moved from its place to another's."""


def write(path: Path, data: bytes, mode: int = 0o666, draft: Path | None = None) -> None:
    """Write or replace a file, by a temporary file, fsync, rename and fsync of the folder.

    Several processes may write one file at once: it then has the bytes of the last. A link at
    ``path`` is replaced, not followed.

    Args:
        path: The file.
        data: Its content.
        mode: Its mode, of which the umask takes its part.
        draft: What the temporary file is named after, elsewhere on the same disk; by default
            ``path``.

    Raises:
        OSError: It cannot be written; an old file at ``path`` is unchanged, and no other is left.
    """
    try:
        with _temporary(draft or path, mode) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # missing if the disk is full
        raise
    sync_folder(path.parent)


@contextmanager
def _temporary(path: Path, mode: int) -> Generator[IO[bytes], None, None]:
    """A new file beside another, ``NAME.RANDOM.part``, that this process alone has and locks.

    First it removes those of killed processes, which are those that no process has locked. The file
    itself is removed at the end, unless it was renamed.
    """
    ours = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{16}}\.part")
    for left in [part for part in path.parent.iterdir() if ours.fullmatch(part.name)]:
        with suppress(OSError):  # gone, in use, no file of ours, or there are no locks
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()
            finally:
                os.close(descriptor)
    file = _create(path, mode)
    try:
        with file:
            yield file
    finally:
        with suppress(OSError):
            Path(file.name).unlink(missing_ok=True)


def _create(path: Path, mode: int) -> IO[bytes]:
    while True:
        name = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
        file = open(name, "xb", opener=lambda it, flags: os.open(it, flags, mode))  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process takes it for left over, or another user has it
            Path(file.name).unlink(missing_ok=True)
        except OSError:  # a file system without locks; what is left then stays
            return file
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def read(path: Path, most: int = -1) -> bytes:
    """The content of a regular file; of a pipe, which might never end, nothing is read.

    Args:
        path: The file.
        most: Bytes to read at most; all, if negative.

    Raises:
        OSError: It cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):  # of which Python would say the descriptor's number alone
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        _check_mode(path, mode)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file, or a folder and what is in it; of a link only the link. None is fine, too.

    It is renamed first, so that it is gone at once: a process that knows its name can neither put
    anything into it meanwhile, nor find half of it.

    Raises:
        OSError: It cannot be renamed.
    """
    with suppress(FileNotFoundError):
        gone = set_aside(path)
        if gone.is_symlink() or not gone.is_dir():
            gone.unlink()
        else:
            shutil.rmtree(gone, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Rename a file or folder to ``NAME.RANDOM.part``, a name that nobody knows; returns it."""
    name = re.sub(r"\.[0-9a-f]{16}\.part$", "", path.name)
    return path.rename(path.with_name(f"{name}.{secrets.token_hex(8)}.part"))


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and in those below it, without following links to folders.

    Others may write and remove there meanwhile; `Path.rglob` fails if a folder goes while it looks
    (Python 3.11 and 3.12). Without the folder there are none, and none in one of another user that
    may not be read.

    Raises:
        OSError: A folder cannot be read for another reason.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
            raise error

    walk = os.walk(folder, onerror=refuse)
    return [Path(parent, name) for parent, _, names in walk for name in names]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, if the file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def seal(
    path: Path,
    tensors: Mapping[str, Tensor],
    content: Mapping[str, Any],
    of: str,
    draft: Path | None = None,
) -> None:
    """Write tensors and JSON as one file; see :func:`write`.

    The file is a SHA-256 followed by safetensors, which, unlike a pickle, run no code when read. It
    names what it is ``of``.
    """
    from safetensors.torch import save

    # safetensors refuses tensors that share memory, hence the clones.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    body = save(plain, {"content": json.dumps(content), "of": of})
    write(path, hashlib.sha256(body).digest() + body, draft=draft)


def unseal(data: bytes, of: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and JSON of a sealed file's content.

    Raises:
        Damaged: It is not as it was written.
        Misplaced: It is whole, but of something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise Damaged("its checksum does not match")
    try:
        length = int.from_bytes(body[:_LENGTH_BYTES], "little")
        header = json.loads(body[_LENGTH_BYTES : _LENGTH_BYTES + length])
        found = header["__metadata__"]["of"]
        if found != of:
            raise Misplaced(f"it is of {found!r:.60}, which is another")
        content = json.loads(header["__metadata__"]["content"])
        if not isinstance(content, dict):
            raise Damaged("its content is no mapping")
        return load(body), content
    except Misplaced:
        raise
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise Damaged(f"it is no sealed file ({error})") from error


def peek(file: IO[bytes]) -> dict[str, Any]:
    """The JSON of a sealed file, read from its beginning alone: the rest may be damaged.

    Raises:
        Damaged: It is no sealed file.
    """
    file.seek(_DIGEST_BYTES)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    try:
        header = file.read(length) if length <= _MOST_HEADER else b""
        content = json.loads(json.loads(header)["__metadata__"]["content"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"it is no sealed file ({error})") from error
    if not isinstance(content, dict):
        raise Damaged("its content is no mapping")
    return content


def check_regular(path: Path) -> None:
    """Refuse a FIFO, a socket and a device, since reading one may never end.

    Raises:
        OSError: The path leads to one, or nowhere.
    """
    _check_mode(path, path.stat().st_mode)


def check_replaceable(folder: Path, names: Collection[str]) -> None:
    """Refuse to put a result in place of a folder that holds anything else.

    What is replaced is deleted, and a name may lead to a folder that is none of ours, by a link in
    a project that somebody else made. Of a link in the folder's own place only the link goes.

    Args:
        folder: The folder; it need not exist.
        names: Of the files of such a result.

    Raises:
        OSError: It holds something else, or cannot be read.
    """
    if folder.is_symlink():
        return
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            known = entry.name in names or entry.name.startswith(_LITTER)
            if entry.is_dir(follow_symlinks=False) or not (known or entry.name.endswith(".part")):
                why = f"{entry.name!r} is none of the files to be replaced; move it elsewhere"
                raise OSError(errno.ENOTEMPTY, why, str(folder))


def _check_mode(path: Path, mode: int) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
        raise OSError(errno.EINVAL, f"found a {kind}, allowed: a regular file", str(path))
