"""What is meant by `--data`: a built-in data set, or images of one's own as they lie."""

from pathlib import Path
from typing import Any

from smallbatch.config.dataset import BUILT_IN, DatasetConfig
from smallbatch.config.params import parse_dataset
from smallbatch.config.values import as_name
from smallbatch.data.choice import has_test
from smallbatch.data.files import below
from smallbatch.data.image_folder import SUFFIXES, splits_in
from smallbatch.data.rows import check_classes
from smallbatch.data.sizes import side, sizes_below, sizes_of
from smallbatch.data.sources import open_source
from smallbatch.errors import UserError

OPTION = "--data"
_ALLOWED = (
    f"{', '.join(BUILT_IN)}, a folder of images (a folder for each class) or of Parquet files, or "
    "one Parquet file"
)


def dataset_of(
    text: str, *, image_size: int | None = None, test_fraction: float = 0.25
) -> DatasetConfig:
    """The settings of the data set that a text names, looked at but not decoded.

    Args:
        text: A built-in name; or the path of a folder of images, with or without splits, of a
            folder of Parquet files or of one Parquet file. A folder called like a built-in data set
            is written ``./cifar10``.
        image_size: Side in pixels of the square that images are resized to; None: as it fits the
            images, at most ``sizes.LARGEST``.
        test_fraction: The share that is held out as the test split, where there is none.

    Raises:
        UserError: There is no such file or folder, or it cannot be prepared as it is: no images,
            one class only, a class with one image, columns of which several may be meant.
    """
    if text in BUILT_IN:
        return parse_dataset({"name": text, "source": text, "image_size": image_size}, OPTION)
    path = _path(text)
    try:
        kind, found = _looked_at(path, image_size)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot read it ({error.strerror})") from error
    held_out = found.pop("held_out")
    config = parse_dataset(
        {
            "name": as_name(path.stem if path.is_file() else path.name, "images"),
            "source": kind,
            "path": str(path),
            "test_fraction": test_fraction if held_out else None,
            **found,
        },
        OPTION,
    )
    check_classes(open_source(config, Path("data")))
    return config


def _path(text: str) -> Path:
    try:
        path = Path(text).expanduser().resolve()
        there = bool(text) and path.exists()
    except (OSError, RuntimeError, ValueError):  # of a user who is not there, or too long
        there, path = False, Path()
    if not there:
        raise UserError(f"{OPTION}: found {text!r}, which is not there; allowed: {_ALLOWED}")
    return path


def _looked_at(path: Path, image_size: int | None) -> tuple[str, dict[str, Any]]:
    """The source of a path, and its settings; ``held_out`` is whether it has no test split."""
    if path.is_file():
        if path.suffix.lower() != ".parquet":
            raise UserError(f"{OPTION}: found the file {path}; allowed: {_ALLOWED}")
        return "parquet", _parquet(path, image_size)
    files = [Path(entry.path) for entry in below(path) if not entry.is_dir()]
    shards = [file for file in files if file.suffix.lower() == ".parquet"]
    images = any(file.suffix.lower() in SUFFIXES for file in files)
    if shards and images:
        raise UserError(
            f"{OPTION}: found {path} with images and with Parquet files, such as {shards[0]}; "
            "allowed: one of the two, so move the others elsewhere"
        )
    if shards:
        return "parquet", _parquet(path, image_size, shards)
    if not images:
        raise UserError(
            f"{OPTION}: found {path} without images; allowed: files {' '.join(SUFFIXES)} in a "
            "folder for each class, or Parquet files"
        )
    found = {"held_out": not has_test(splits_in(path))}
    return "image_folder", {**found, "image_size": image_size or side(sizes_below(path))}


def _parquet(
    path: Path, image_size: int | None, shards: list[Path] | None = None
) -> dict[str, Any]:
    from smallbatch.data.columns import columns_of, spread
    from smallbatch.data.parquet import shard_files
    from smallbatch.data.shards import find_shards

    found: dict[str, Any] = {}
    splits = find_shards(path) if shards is not None else {}
    if shards is not None and not splits and len(shards) == 1:
        path = shards[0]  # its name is that of no split
        found["path"] = str(path)
    held_out = not has_test(list(splits))
    (training, *_), _, _ = shard_files(path, None, held_out=held_out)
    image_column, label_column = columns_of(training[0])
    sizes = sizes_of(spread(training, image_column)) if image_size is None else []
    if image_size is None and not sizes:
        raise UserError(f"{path}: found no row; allowed: an image in each of some rows")
    return {
        **found,
        "held_out": held_out,
        "image_column": image_column,
        "label_column": label_column,
        "image_size": image_size or side(sizes),
    }
