"""Prepares a data set: from a configuration to ``data/prepared/<dataset>``."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np

from smallbatch.config.dataset import MOST_PIXELS
from smallbatch.config.params import DatasetConfig
from smallbatch.data.expected import settings_digest
from smallbatch.data.images import size_text, with_channels
from smallbatch.data.prepared import (
    Dataset,
    Meta,
    channel_statistics,
    fingerprint,
    write_prepared,
)
from smallbatch.data.rows import Digests, check_classes, select, select_train, tell_of_shared
from smallbatch.data.sources import open_source
from smallbatch.data.split import Arrays, Images, Rows, Source
from smallbatch.errors import UserError, first_line


def prepare(
    config: DatasetConfig,
    root: Path = Path("data"),
    *,
    say: Callable[[str], object] = lambda _: None,
    told: Callable[[int, int], object] = lambda *_: None,
    begin: Callable[[int, int | None], object] = lambda *_: None,
) -> Meta:
    """Prepares a data set: selects, decodes and resizes its images and describes them.

    The training images are first cut to ``subset``, then ``validation_fraction`` of them become
    the validation split. The same configuration and source give the same bytes everywhere.

    Args:
        config: The data set's configuration.
        root: The data folder; writes ``root/prepared/<name>``.
        say: Takes a line for the user, such as which of several splits are used.
        told: Is told how many images are prepared, and of how many, where they are kept encoded:
            that may take hours.
        begin: Is told, before an image is read, how many training images there will be at most,
            and the largest short side with which images are kept; None: they are kept as pixels.

    Returns:
        The description that was written as ``meta.json``.

    Raises:
        UserError: The source or an option is wrong; nothing has been written or replaced.
    """
    source = open_source(config, root)
    if source.note is not None:
        say(source.note)
    large = config.storage == "auto" and _is_large(config, source)
    if large:
        say(
            f"{config.name}: images are kept encoded, as their pixels would take more than "
            f"{MOST_PIXELS >> 30} GiB (dataset.storage chooses)"
        )
    images = config.subset or len(source.train.labels)
    train = images - round(config.validation_fraction * images)
    if large or config.storage == "encoded":
        from smallbatch.data.prepare_encoded import prepare_encoded, short_side

        begin(train, short_side(config))
        return prepare_encoded(config, source, root, say, told)
    begin(train, None)
    try:
        dataset = assemble(config, source)
        seen = {
            "test": _digests(dataset.test_images),
            "validation": _digests(dataset.validation_images),
            "training": _digests(dataset.train_images),
        }
        tell_of_shared(seen, "pixel by pixel", say)
        write_prepared(dataset, root / "prepared" / config.name, settings_digest(config))
    except MemoryError as error:
        raise UserError(
            f"dataset: not enough memory to prepare {config.name} ({first_line(error)}); "
            "allowed: a smaller image_size, subset or test_subset"
        ) from error
    return dataset.meta


def _is_large(config: DatasetConfig, source: Source) -> bool:
    """Whether images that can be kept encoded would have more pixels than are kept otherwise."""
    if config.image_size is None or source.train.encoded is None or source.test.encoded is None:
        return False
    images = config.subset or len(source.train.labels)
    images += config.test_subset or len(source.test.labels)
    return images * 3 * config.image_size**2 > MOST_PIXELS


def assemble(config: DatasetConfig, source: Source) -> Dataset:
    """Puts a data set together in memory; ``prepare`` writes it.

    Args:
        config: The data set's configuration.
        source: The opened source that the configuration names.

    Raises:
        UserError: The source or an option is wrong.
    """
    check_classes(source)
    train, validation = select_train(config, source)
    test = select(source.test, source.classes, config.test_subset, "test_subset", config.seed)
    return _read(config, source, train, validation, test)


def _digests(images: Images | None) -> Digests:
    """Of the pixels of each image."""
    found = [sha256(image.tobytes()).digest() for image in images] if images is not None else []
    return np.array(found, "S32")


def _read(
    config: DatasetConfig, source: Source, train: Rows, validation: Rows, test: Rows
) -> Dataset:
    """Decodes the selected images and puts the data set together."""
    rows = np.union1d(train, validation)
    pool, test_images = source.train.read(rows), source.test.read(test)
    if pool.shape[2:] != test_images.shape[2:]:
        raise UserError(
            f"{source.test.where}: found {size_text(test_images)} pixels where "
            f"{source.train.where} has {size_text(pool)}; "
            "allowed: one size, or set dataset.image_size"
        )
    channels = max(pool.shape[1], test_images.shape[1])
    pool, test_images = with_channels(pool, channels), with_channels(test_images, channels)
    arrays: Arrays = {
        "train_images": pool[np.searchsorted(rows, train)] if len(validation) else pool,
        "train_labels": source.train.labels[train],
        "test_images": test_images,
        "test_labels": source.test.labels[test],
    }
    if len(validation):
        arrays["validation_images"] = pool[np.searchsorted(rows, validation)]
        arrays["validation_labels"] = source.train.labels[validation]
    return _describe(config, source.classes, arrays)


def _describe(config: DatasetConfig, classes: tuple[str, ...], arrays: Arrays) -> Dataset:
    train = arrays["train_images"]
    mean, std = channel_statistics(train)
    meta = Meta(
        name=config.name,
        source=config.source,
        classes=classes,
        channels=train.shape[1],
        height=train.shape[2],
        width=train.shape[3],
        mean=mean,
        std=std,
        counts={
            split: len(arrays[f"{split}_labels"]) if f"{split}_labels" in arrays else 0
            for split in ("train", "validation", "test")
        },
        fingerprint=fingerprint(classes, arrays),
        scale=config.scale,
    )
    return Dataset(meta=meta, **arrays)
