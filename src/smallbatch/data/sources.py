"""Opens the source of a configuration, after checking the options for it."""

from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.config.params import DatasetConfig
from smallbatch.config.values import MOST
from smallbatch.data.images import resize_all
from smallbatch.data.selection import DIGITS_STREAM, stratified
from smallbatch.data.split import Images, Rows, Source, Split
from smallbatch.errors import UserError

DIGITS_TEST_IMAGES = 360
ENCODED = ("parquet", "image_folder")
"""Sources of encoded images, which may be kept so."""
_OPTIONS = {  # that not all sources have
    "image_column": ("parquet",),
    "label_column": ("parquet",),
    "test_split": ("parquet", "image_folder"),
    "test_fraction": ("parquet", "image_folder"),
    "max_megapixels": ("parquet", "image_folder"),
    "short_side": ("parquet", "image_folder"),
    "test_labels": ("image_folder",),
}


def open_source(config: DatasetConfig, root: Path) -> Source:
    """Opens a source: its classes and labels; images are read later.

    Args:
        config: The data set's configuration.
        root: The data folder; downloads without a ``path`` go to ``root/raw/<source>``.

    Returns:
        The source.

    Raises:
        UserError: An option is missing or does not apply, or the source can't be opened.
    """
    _check_options(config)
    path = _path(config, root)
    if config.source == "digits":
        return _open_digits(config.image_size)
    if config.source == "parquet":
        from smallbatch.data.parquet import open_parquet

        return open_parquet(
            path, config.image_column, config.label_column, config.image_size,
            test_split=config.test_split, max_megapixels=config.max_megapixels,
            test_fraction=config.test_fraction, seed=config.seed,
        )  # fmt: skip
    if config.source == "image_folder":
        from smallbatch.data.image_folder import open_image_folder

        return open_image_folder(
            path, config.image_size,
            test_split=config.test_split, max_megapixels=config.max_megapixels,
            test_fraction=config.test_fraction, seed=config.seed, test_labels=config.test_labels,
        )  # fmt: skip
    from smallbatch.data.cifar import open_cifar

    return open_cifar(config.source, path, config.image_size)


def source_files(config: DatasetConfig, root: Path) -> Path | None:
    """Where all files of a source are, if they are there: a folder or one file. None: it has none.

    Raises:
        UserError: It is in the home of a user who does not exist.
    """
    if config.source == "digits":
        return None
    extracted = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    return _path(config, root) / extracted.get(config.source, "")


def label_file(config: DatasetConfig, root: Path) -> Path | None:
    """The file with the labels of test images that lie side by side, if there is one.

    It need not be among the files of the source.
    """
    return _path(config, root) / config.test_labels if config.test_labels else None


def _path(config: DatasetConfig, root: Path) -> Path:
    if not config.path:
        return root / "raw" / config.source
    try:
        return Path(config.path).expanduser()
    except RuntimeError as error:
        raise UserError(f"dataset.path: found {config.path!r} ({error})") from error


def _check_options(config: DatasetConfig) -> None:
    if config.source == "digits" and config.path is not None:
        raise UserError(
            f"dataset.path: found {config.path!r} with source digits, which is embedded; "
            "allowed: no path"
        )
    if config.source in ("parquet", "image_folder") and not config.path:
        raise UserError(
            f"dataset.path: missing; allowed with source {config.source}: the folder of the images"
        )
    for key in ("test_split", "test_labels"):
        value = getattr(config, key)
        if value is not None and config.test_fraction is not None:
            raise UserError(
                f"dataset.{key}: found {value!r} beside test_fraction; allowed: one of the two"
            )
    _check_storage(config)
    for key, sources in _OPTIONS.items():
        value = getattr(config, key)
        if config.source not in sources and value != DatasetConfig.model_fields[key].default:
            raise UserError(
                f"dataset.{key}: found {value!r} with source {config.source}; "
                f"allowed: with source {' or '.join(sources)} only"
            )


def _check_storage(config: DatasetConfig) -> None:
    if config.storage == "pixels" and config.short_side is not None:
        raise UserError(
            f"dataset.short_side: found {config.short_side} with storage pixels; "
            "allowed: with storage encoded only"
        )
    if config.storage == "encoded" and config.source not in ENCODED:
        raise UserError(
            f"dataset.storage: found encoded with source {config.source}; "
            f"allowed: with source {' or '.join(ENCODED)} only"
        )
    if config.storage == "encoded" and config.image_size is None:
        raise UserError(
            "dataset.image_size: missing; allowed with storage encoded: the side in pixels of the "
            "crops that the model sees"
        )
    if (config.short_side or MOST) < (config.image_size or 0):
        raise UserError(
            f"dataset.short_side: found {config.short_side}; allowed: image_size, "
            f"{config.image_size}, or more"
        )


def _open_digits(image_size: int | None) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, 1,437 for training and 360 for test.

    The split does not depend on the configured seed, so every result on digits is measured on
    the same test images (unless ``test_subset`` selects among them).
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    # Values are 0 … 16 in the original; integer arithmetic rounds the same way everywhere.
    pixels = ((digits.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)[:, np.newaxis]
    labels = digits.target.astype(np.int64)
    test = stratified(labels, DIGITS_TEST_IMAGES, seed=0, stream=DIGITS_STREAM)
    train = np.setdiff1d(np.arange(len(labels)), test)

    def split(name: str, members: Rows) -> Split:
        def read(rows: Rows) -> Images:
            return resize_all(pixels[members[rows]], image_size)

        return Split(f"digits {name} split", labels[members], read)

    classes = tuple(str(name) for name in digits.target_names)
    return Source(classes, split("training", train), split("test", test))
