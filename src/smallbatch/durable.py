"""Writes files completely or not at all, even if the process is killed or power fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_DIGEST_BYTES = hashlib.sha256().digest_size
_LENGTH_BYTES = 8  # of safetensors' little-endian header length


class Damaged(ValueError):  # noqa: N818 - the state of a file
    """A sealed file is not as it was written."""


def write(path: Path, data: bytes) -> None:
    """Write or replace a file, by a temporary file, fsync, rename and fsync of the folder.

    Raises:
        OSError: It cannot be written; an old file at ``path`` is unchanged, and no other is left.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # missing if the disk is full
        raise
    sync_folder(path.parent)


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


def seal(path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors and JSON as one file; see :func:`write`.

    The file is a SHA-256 followed by safetensors, which, unlike a pickle, run no code when read.
    """
    from safetensors.torch import save

    # safetensors refuses tensors that share memory, hence the clones.
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    body = save(plain, {"content": json.dumps(content)})
    write(path, hashlib.sha256(body).digest() + body)


def unseal(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and JSON of a sealed file.

    Raises:
        OSError: It cannot be read.
        Damaged: It is not as it was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = path.read_bytes()
    digest, body = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise Damaged("its checksum does not match")
    try:
        length = int.from_bytes(body[:_LENGTH_BYTES], "little")
        header = json.loads(body[_LENGTH_BYTES : _LENGTH_BYTES + length])
        content = json.loads(header["__metadata__"]["content"])
        if not isinstance(content, dict):
            raise Damaged("its content is no mapping")
        return load(body), content
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise Damaged(f"it is no sealed file ({error})") from error
