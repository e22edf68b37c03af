"""The sources ``cifar10`` and ``cifar100``: torchvision's, downloaded once and verified."""

import http.client
import socket
import tarfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.data.files import check_regular
from smallbatch.data.images import resize_all
from smallbatch.data.scratch import scratch_folder
from smallbatch.data.split import Images, Rows, Source, Split
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

# Without a time limit the download could wait for ever for a silent network.
_TIMEOUT_SECONDS = 30.0
_FAILURES = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    tarfile.TarError,
    http.client.HTTPException,
)


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
    if not (folder / kind.base_folder).exists():
        _download(kind, source, folder)
    train, test = _load(kind, folder, train=True), _load(kind, folder, train=False)
    classes = tuple(str(name) for name in train.classes)
    return Source(
        classes,
        _split(train, f"{source} training split", image_size),
        _split(test, f"{source} test split", image_size),
    )


def _load(kind: "type[CIFAR10]", folder: Path, *, train: bool) -> "CIFAR10":
    try:
        for path in (folder / kind.base_folder).iterdir():
            check_regular(path)
        with warnings.catch_warnings():
            # The published pickles are older than NumPy 2, which warns about their dtypes.
            warnings.simplefilter("ignore")
            return kind(str(folder), train=train, download=False)
    except Exception as error:
        raise UserError(
            f"{folder / kind.base_folder}: damaged (its files' checksums don't match); "
            "remove this folder to have it downloaded again"
        ) from error


def _download(kind: "type[CIFAR10]", source: str, folder: Path) -> None:
    """Downloads to a temporary folder, extracts and verifies; only then moves the data set."""
    from torchvision.datasets.utils import check_integrity

    try:
        with scratch_folder(folder, "download") as scratch:
            published = folder / kind.filename
            if published.exists():
                check_regular(published)
            if check_integrity(published, kind.tgz_md5):
                (scratch / kind.filename).symlink_to(published.resolve())
            with _timeout(_TIMEOUT_SECONDS):
                kind(str(scratch), download=True)
            (scratch / kind.base_folder).rename(folder / kind.base_folder)
    except _FAILURES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"dataset.source {source}: cannot download {kind.url} ({reason}); connect to the "
            f"network, or put the intact {kind.filename} into {folder}"
        ) from error


@contextmanager
def _timeout(seconds: float) -> Generator[None, None, None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _split(dataset: "CIFAR10", where: str, image_size: int | None) -> Split:
    pixels: Images = np.asarray(dataset.data, dtype=np.uint8)

    def read(rows: Rows) -> Images:
        return resize_all(np.ascontiguousarray(pixels[rows].transpose(0, 3, 1, 2)), image_size)

    return Split(where, np.asarray(dataset.targets, dtype=np.int64), read)
