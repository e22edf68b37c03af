"""A prepared data set whose images are kept encoded: an index in memory, the images on disk.

``data/prepared/<dataset>`` then holds Parquet shards, which any reader of Parquet opens, and
``index.npy``: where in the shards the bytes of each image lie, so that one ``pread`` reads it.
"""

import errno
import hashlib
import json
import os
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smallbatch import durable
from smallbatch.data.prepared import SPLITS, Dataset, Meta, load_meta, load_prepared
from smallbatch.data.split import Labels
from smallbatch.errors import UserError

DIGEST_BYTES = 16
"""Of the SHA-256 of an image's bytes, those that the index keeps."""
INDEX = np.dtype(
    [
        ("label", "<i8"),
        ("shard", "<i4"),
        ("offset", "<i8"),
        ("length", "<i4"),
        ("digest", "u1", (DIGEST_BYTES,)),
    ]
)
"""A row of ``index.npy``. Rows come by split, in the order of `SPLITS`; ``shard`` counts the names
in ``meta.json``, which are sorted."""
_MOST_OPEN = 512  # files of a data set, whatever a process may have
_PART_OPEN = 4  # and at most one of so many that it may


@dataclass(frozen=True)
class EncodedSplit:
    """The encoded images of a split, N of them: JPEG, each of its own size.

    It can be pickled; shards are opened by the process that reads, for all splits together.

    Attributes:
        folder: The folder of the shards.
        shards: The names of all shards of the data set.
        labels: The class index of every image, int64 (N,).
        shard: In which of the shards it lies, int32 (N,).
        offset: The position of its first byte there, int64 (N,).
        length: The number of its bytes, int32 (N,).
        digest: The beginning of their SHA-256, uint8 (N, 16).
    """

    folder: Path
    shards: tuple[str, ...]
    labels: Labels
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int32]
    digest: npt.NDArray[np.uint8]
    _open: "_Open" = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, row: int) -> bytes:
        """The bytes of an image, a JPEG; from any thread.

        Raises:
            UserError: They cannot be read, or are not those that were written.
        """
        path = self.folder / self.shards[self.shard[row]]
        try:
            found = self._open.read(path, int(self.length[row]), int(self.offset[row]))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
        if digest_of(found) != self.digest[row].tobytes():
            raise UserError(
                f"{path}, image {row}: damaged; remove this file and prepare the data set again"
            )
        return found


class _Open:
    """Files that this process has opened; a copy of it, as in another process, has none."""

    def __init__(self) -> None:
        self._files: dict[Path, _File] = {}

    def read(self, path: Path, length: int, offset: int) -> bytes:
        file = self._files.get(path)
        if file is None:
            file = self._opened(path)
            if len(self._files) < _most_open():
                self._files[path] = file  # of two threads' files, one is kept
        return os.pread(file.descriptor, length, offset)

    def _opened(self, path: Path) -> "_File":
        try:
            return _File(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._files.clear()
        return _File(path)

    def __reduce__(self) -> tuple[type["_Open"], tuple[()]]:
        return _Open, ()


class _File:
    """An open file, closed when nobody holds it: not before a thread that reads it is through."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):  # it may not have been opened
            os.close(self.descriptor)


def _most_open() -> int:
    """How many files of a data set are kept open, by what the process may have now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else min(_MOST_OPEN, soft // _PART_OPEN)


@dataclass(frozen=True)
class EncodedDataset:
    """The description and the splits of a data set whose images are kept encoded."""

    meta: Meta
    train: EncodedSplit
    test: EncodedSplit
    validation: EncodedSplit | None

    @property
    def test_labels(self) -> Labels:
        """The class index of every test image, int64 (N,)."""
        return self.test.labels


def load_any(directory: Path) -> Dataset | EncodedDataset:
    """Reads a prepared data set, whichever way its images are kept.

    Raises:
        UserError: See `load_prepared` and `load_encoded`.
    """
    encoded = load_meta(directory).short_side is not None
    return load_encoded(directory) if encoded else load_prepared(directory)


def load_encoded(directory: Path) -> EncodedDataset:
    """Reads the index of a data set whose images are kept encoded, and none of the images.

    The index and the description are checked against their digest, the shards' sizes against the
    description; each image is checked when it is read.

    Args:
        directory: The folder, ``data/prepared/<dataset>``.

    Raises:
        UserError: A file is missing or damaged, or the images are kept as pixels.
    """
    meta = load_meta(directory)
    if meta.short_side is None:
        raise UserError(f"{directory}: found pixels; allowed: images kept encoded")
    path = directory / "index.npy"
    try:
        content: dict[str, Any] = json.loads(durable.read(directory / "meta.json"))
        rows = _index(path)
        stated = content.pop("digest", None)
        if stated != index_digest(content, rows):
            raise UserError(f"{path}: does not match meta.json; prepare the data set again")
        shards: dict[str, int] = content["shards"]
        for name, size in shards.items():
            path = directory / name
            durable.check_regular(path)
            if path.stat().st_size != size:
                raise UserError(
                    f"{path}: found {path.stat().st_size} bytes, meta.json says {size}; "
                    "prepare the data set again"
                )
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: {reason}; prepare the data set again") from error
    splits: dict[str, EncodedSplit] = {}
    opened, start = _Open(), 0
    for split in SPLITS:
        part = rows[start : start + meta.counts[split]]
        start += len(part)
        fields = (np.ascontiguousarray(part[name]) for name in INDEX.names or ())
        splits[split] = EncodedSplit(directory, tuple(sorted(shards)), *fields, _open=opened)
    validation = splits["validation"] if meta.counts["validation"] else None
    return EncodedDataset(meta, splits["train"], splits["test"], validation)


def _index(path: Path) -> npt.NDArray[np.void]:
    durable.check_regular(path)
    try:
        # Memory-mapped first: a damaged header that claims terabytes then allocates nothing.
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    # A damaged header may make NumPy's parser raise almost any exception.
    except Exception as error:
        raise UserError(f"{path}: damaged ({error}); prepare the data set again") from error
    if rows.dtype != INDEX or rows.ndim != 1:
        raise UserError(f"{path}: damaged (found {rows.dtype}); prepare the data set again")
    return rows


def index_digest(content: dict[str, Any], rows: npt.NDArray[np.void]) -> str:
    """SHA-256 (hex) of the index and of what ``meta.json`` says beside this digest."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(rows).view(np.uint8).data)
    return digest.hexdigest()


def digest_of(content: bytes) -> bytes:
    """The digest of an image's bytes that the index keeps."""
    return hashlib.sha256(content).digest()[:DIGEST_BYTES]
