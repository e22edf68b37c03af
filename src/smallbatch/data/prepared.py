"""A prepared data set: arrays and ``meta.json`` in a folder, written completely or not at all."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from smallbatch import durable, private
from smallbatch.data.scratch import locked, scratch_folder
from smallbatch.data.split import Arrays, Images, Labels
from smallbatch.errors import UserError

SPLITS = ("train", "validation", "test")
_COUNTED = 2**20  # pixels
_LATER = ("short_side", "crop_ratio", "interpolation")  # fields of `Meta`
_FILES = re.compile(
    r"meta\.json|index\.npy|(train|validation|test)(_(images|labels)\.npy|-\d{5,}\.parquet)"
)
"""The names of a prepared data set's files, of either storage."""


@dataclass(frozen=True)
class Meta:
    """The content of ``meta.json``, which describes a prepared data set.

    Attributes:
        name: The data set's name in params.yaml, and that of its folder.
        source: The kind of source that it came from.
        classes: The names of the classes; a label is an index into them.
        channels: 1 (grayscale) or 3.
        height: The height of an image in pixels.
        width: The width of an image in pixels.
        mean: The mean of the training pixels divided by 255, per channel.
        std: The population standard deviation of the same, per channel. It is 0 for a channel that
            is constant over the training set, so check it before dividing.
        counts: The number of images by split: train, validation (0 if there is none) and test.
        fingerprint: The SHA-256 (hex) of arrays, labels and class names. It does not depend on the
            name, the source, or where and when the data set was prepared.
        scale: How far a profile was shrunk when this was prepared, such as ``small``; a label.
        short_side: The largest short side of the images in pixels, if they are kept encoded, each
            of its own size; height and width are then those of the crops that a model sees.
        crop_ratio: The side of the middle that is evaluated, as a part of the short side, if a
            study states it.
        interpolation: The filter by which crops are resized, ``bilinear`` or ``bicubic``, likewise.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, int]
    fingerprint: str
    scale: str | None = None
    short_side: int | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class _Origin:
    """What ``meta.json`` says beyond the description: a digest of the settings, if any."""

    settings: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Images, uint8 (N, C, H, W), and labels, int64 (N,), of each split, and their description."""

    meta: Meta
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    validation_images: Images | None = None
    validation_labels: Labels | None = None

    def arrays(self) -> Arrays:
        """The arrays by file name without suffix; a missing validation split is left out."""
        found = {
            f"{split}_{kind}": getattr(self, f"{split}_{kind}")
            for split in SPLITS
            for kind in ("images", "labels")
        }
        return {name: array for name, array in found.items() if array is not None}


def fingerprint(classes: tuple[str, ...], arrays: Arrays) -> str:
    """SHA-256 (hex) over class names and every array's name, type, shape and content."""
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for name, array in sorted(arrays.items()):
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(json.dumps([name, little_endian.dtype.str, array.shape]).encode())
        digest.update(little_endian.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def channel_statistics(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of each channel of uint8 pixels divided by 255.

    Computed from exact counts of the 256 values, so that the order of a summation has no effect.

    Args:
        images: Pixels (N, C, H, W).

    Returns:
        Means (C,) and standard deviations (C,), float64.
    """
    counts = np.zeros((images.shape[1], 256), dtype=np.int64)
    many = max(1, _COUNTED // images[0, 0].size)  # at once: bincount makes 8 bytes of each pixel
    for chunk in np.array_split(images, range(many, len(images), many)):
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    values = np.arange(256)
    total = counts[0].sum()
    mean = (counts @ values) / total / 255
    deviation = values / 255 - mean[:, np.newaxis]
    std = np.sqrt((counts * deviation**2).sum(axis=1) / total)
    return tuple(mean.tolist()), tuple(std.tolist())


def load_prepared(directory: Path) -> Dataset:
    """Reads a prepared data set and checks it against its description and fingerprint.

    Args:
        directory: The folder, ``data/prepared/<dataset>``.

    Returns:
        The data set, completely in memory.

    Raises:
        UserError: A file is missing or damaged, or does not match ``meta.json``.
    """
    meta = load_meta(directory)
    if meta.short_side is not None:
        raise UserError(
            f"{directory}: found images kept encoded, which this command does not read; "
            "allowed: dataset.storage: pixels"
        )
    validation = ("validation",) if meta.counts["validation"] else ()
    arrays: Arrays = {}
    for split in ("train", "test", *validation):
        shape = (meta.counts[split], meta.channels, meta.height, meta.width)
        images = _load_array(directory / f"{split}_images.npy", np.dtype(np.uint8), shape)
        labels = _load_array(directory / f"{split}_labels.npy", np.dtype(np.int64), shape[:1])
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    if fingerprint(meta.classes, arrays) != meta.fingerprint:
        raise UserError(f"{directory}: its content doesn't match the fingerprint; prepare it again")
    # Which does not cover these, on which every result depends.
    stated = [*meta.mean, *meta.std]
    found = np.ravel(channel_statistics(arrays["train_images"]))
    if len(stated) != len(found) or not np.allclose(stated, found, 1e-9, 1e-12):
        raise UserError(f"{directory}: meta.json has other images' mean and std; prepare it again")
    return Dataset(meta=meta, **arrays)


def write_prepared(dataset: Dataset, directory: Path, settings: str | None = None) -> None:
    """Writes a data set into a folder, and replaces what was there.

    The same data always give the same bytes.

    The files are written and synced in a temporary folder beside it, which is then renamed, so that
    no error or interrupt leaves an incomplete data set.

    Args:
        dataset: The data set.
        directory: The folder, ``data/prepared/<dataset>``.
        settings: A digest of the settings that it was prepared with, for ``meta.json``.

    Raises:
        UserError: The folder can't be written.
    """
    private.refuse_links_of_others(directory)
    try:
        with scratch_folder(directory.parent, directory.name) as scratch:
            _write_files(dataset, scratch / "new", settings)
            replace_prepared(scratch / "new", directory, aside=scratch / "old")
    except OSError as error:
        raise UserError(f"{directory}: cannot write it ({error.strerror or error})") from error


def load_meta(directory: Path) -> Meta:
    """Reads the description of a prepared data set, without its arrays.

    Raises:
        UserError: It is missing or damaged.
    """
    meta = _read_meta(Meta, directory)
    if sorted(meta.counts) != sorted(SPLITS):
        path = directory / "meta.json"
        raise UserError(f"{path}: counts: found {sorted(meta.counts)}; allowed: {sorted(SPLITS)}")
    return meta


def settings_of(directory: Path) -> str | None:
    """The digest of the settings that a data set was prepared with; older ones have none.

    Raises:
        UserError: The description is missing or damaged.
    """
    return _read_meta(_Origin, directory).settings


_Read = TypeVar("_Read", Meta, _Origin)


def _read_meta(kind: type[_Read], directory: Path) -> _Read:
    from pydantic import TypeAdapter, ValidationError

    path = directory / "meta.json"
    try:
        return TypeAdapter(kind).validate_json(durable.read(path), strict=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: found no prepared data set (no meta.json); run `smallbatch prepare`"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "content"
        raise UserError(f"{path}: {key}: {first['msg']}; prepare the data set again") from error


def _load_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    try:
        durable.check_regular(path)
        # Memory-mapped first: a damaged header that claims terabytes then allocates nothing.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; prepare the data set again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    # A damaged header may make NumPy's parser raise almost any exception.
    except Exception as error:
        raise UserError(f"{path}: damaged ({error}); prepare the data set again") from error
    if array.dtype != dtype or array.shape != shape:
        raise UserError(
            f"{path}: found {array.dtype} {array.shape}; meta.json says {dtype} {shape}"
        )
    try:
        return np.array(array)
    except MemoryError as error:
        raise UserError(
            f"{path}: its {array.nbytes / 2**30:.2f} GiB need more memory than there is"
        ) from error


def _write_files(dataset: Dataset, directory: Path, settings: str | None) -> None:
    directory.mkdir()
    for name, array in dataset.arrays().items():
        write_file(directory / f"{name}.npy", lambda file, array=array: np.save(file, array))
    content = as_json(dataset.meta) | ({} if settings is None else {"settings": settings})
    write_meta(directory, content)


def as_json(meta: Meta) -> dict[str, Any]:
    """The description as ``meta.json`` has it; what came later only where it is set."""
    return {key: value for key, value in asdict(meta).items()
            if value is not None or key not in _LATER}  # fmt: skip


def write_meta(directory: Path, content: dict[str, Any]) -> None:
    """Writes ``meta.json``, the last file of a prepared data set, and syncs the folder."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    write_file(directory / "meta.json", lambda file: file.write(text.encode()))
    durable.sync_folder(directory)


def write_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file, synced."""
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def replace_prepared(new: Path, directory: Path, aside: Path) -> None:
    """Renames ``new`` to ``directory``; moves the old folder ``aside``, and back on failure.

    Raises:
        OSError: It cannot be done, or the old folder holds what is of no prepared data set.
    """
    with locked(directory.parent):  # two processes may prepare one data set
        there = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        durable.check_replaceable(directory, [name for name in there if _FILES.fullmatch(name)])
        if directory.exists():
            directory.rename(aside)
        try:
            new.rename(directory)
        except BaseException:
            if aside.exists():
                aside.rename(directory)
            raise
        durable.sync_folder(directory.parent)
