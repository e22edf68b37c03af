"""The sources ``cifar10`` and ``cifar100``, downloaded once.

Only the names, the places and the MD5 sums of the published files are torchvision's. It opens a
file again by its name after it has checked it, so that the owner of the folder could put another
in between; here the very bytes that were checked are used.
"""

import hashlib
import http.client
import io
import pickle
import sys
import tarfile
import urllib.request
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smallbatch import durable
from smallbatch.data.images import resize_all
from smallbatch.data.scratch import scratch_folder
from smallbatch.data.split import Images, Rows, Source, Split
from smallbatch.errors import UserError, first_line

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

# Without a time limit the download could wait for ever for a silent network.
_TIMEOUT_SECONDS = 30.0
_LARGEST = 2**28  # bytes; the archives and files have up to 1.7e8
_FAILURES = (OSError, ValueError, KeyError, EOFError, tarfile.TarError, http.client.HTTPException)
# All that the published files, which Python 2 has written, call.
_CALLED = (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))


def open_cifar(source: str, folder: Path, image_size: int | None) -> Source:
    """Opens CIFAR-10 or CIFAR-100, after a download where the folder doesn't hold it.

    Every file's checksum is verified. An archive as published, already in the folder, is used
    instead of a download.

    Args:
        source: "cifar10" or "cifar100".
        folder: Where the extracted data set is or will be.
        image_size: Side of the square that images are resized to; None leaves them 32×32.

    Returns:
        The source, 50,000 training and 10,000 test images.

    Raises:
        UserError: No network, a failed or damaged download, or a damaged copy in the folder.
    """
    from torchvision import datasets

    kind = datasets.CIFAR100 if source == "cifar100" else datasets.CIFAR10
    base = folder / kind.base_folder
    if not base.exists():
        _fetch(kind, source, folder)
    try:
        train, test = ([_entry(base, *file) for file in files]
                       for files in (kind.train_list, kind.test_list))  # fmt: skip
        names = _entry(base, kind.meta["filename"], kind.meta["md5"])[kind.meta["key"]]
        return Source(
            tuple(str(name) for name in names),
            _split(train, f"{source} training split", image_size),
            _split(test, f"{source} test split", image_size),
        )
    except MemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"{base}: damaged ({first_line(error)}); remove this folder to have it downloaded again"
        ) from error


def _entry(base: Path, name: str, md5: str) -> dict[str, Any]:
    data = _checked(durable.read(base / name, _LARGEST), name, md5)
    with warnings.catch_warnings():
        # The published pickles are older than NumPy 2, which warns about their dtypes.
        warnings.simplefilter("ignore")
        return _Unpickler(io.BytesIO(data), encoding="latin1").load()


class _Unpickler(pickle.Unpickler):
    """Makes arrays, and calls nothing else, should a checksum not tell a file from another."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _CALLED:
            raise pickle.UnpicklingError(f"found a call of {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def _checked(data: bytes, name: str, md5: str) -> bytes:
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"the checksum of {name} is not that of the published file")
    return data


def _fetch(kind: "type[CIFAR10]", source: str, folder: Path) -> None:
    """Extracts the archive of the folder, or downloads it; moves the data set only when whole."""
    try:
        with scratch_folder(folder, "download") as scratch:
            try:
                archive = durable.read(folder / kind.filename, _LARGEST)
                archive = _checked(archive, kind.filename, kind.tgz_md5)
            except (FileNotFoundError, ValueError):
                archive = _checked(_download(kind.url), kind.filename, kind.tgz_md5)
            extracted = scratch / kind.base_folder
            extracted.mkdir()
            files = [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]
            _extract(archive, files, extracted)
            extracted.rename(folder / kind.base_folder)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"dataset.source {source}: cannot download {kind.url} ({reason}); connect to the "
            f"network, or put the intact {kind.filename} into {folder}"
        ) from error


def _download(url: str) -> bytes:
    print(f"downloading {url}", file=sys.stderr, flush=True)
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:  # noqa: S310 - https
        return response.read(_LARGEST)


def _extract(archive: bytes, files: Iterable[list[str]], into: Path) -> None:
    """Writes the files, by name and MD5 sum, that an archive has in a folder named as ``into``."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name, md5 in files:
            content = tar.extractfile(f"{into.name}/{name}")
            if content is None:
                raise ValueError(f"{name} in it is not a file")
            durable.write(into / name, _checked(content.read(), name, md5))


def _split(entries: list[dict[str, Any]], where: str, image_size: int | None) -> Split:
    pixels: Images = np.vstack([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    labels = [entry["labels" if "labels" in entry else "fine_labels"] for entry in entries]

    def read(rows: Rows) -> Images:
        return resize_all(np.ascontiguousarray(pixels[rows]), image_size)

    return Split(where, np.concatenate(labels).astype(np.int64), read)
