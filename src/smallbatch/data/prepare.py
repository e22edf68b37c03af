"""Prepares a data set: from a configuration to ``data/prepared/<dataset>``."""

from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from itertools import combinations
from pathlib import Path

import numpy as np

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
from smallbatch.data.selection import (
    TEST_STREAM,
    TRAIN_STREAM,
    VALIDATION_STREAM,
    balanced,
    stratified,
)
from smallbatch.data.sources import open_source
from smallbatch.data.split import Arrays, Labels, Rows, Source, Split
from smallbatch.errors import UserError, first_line


def prepare(
    config: DatasetConfig,
    root: Path = Path("data"),
    *,
    say: Callable[[str], object] = lambda _: None,
) -> Meta:
    """Prepares a data set: selects, decodes and resizes its images and describes them.

    The training images are first cut to ``subset``, then ``validation_fraction`` of them become
    the validation split. The same configuration and source give the same bytes everywhere.

    Args:
        config: The data set's configuration.
        root: The data folder; writes ``root/prepared/<name>``.
        say: Takes a line for the user, such as which of several splits are used.

    Returns:
        The description that was written as ``meta.json``.

    Raises:
        UserError: The source or an option is wrong; nothing has been written or replaced.
    """
    source = open_source(config, root)
    if source.note is not None:
        say(source.note)
    try:
        dataset = assemble(config, source)
        _tell_of_shared_images(dataset, say)
        write_prepared(dataset, root / "prepared" / config.name, settings_digest(config))
    except MemoryError as error:
        raise UserError(
            f"dataset: not enough memory to prepare {config.name} ({first_line(error)}); "
            "allowed: a smaller image_size, subset or test_subset"
        ) from error
    return dataset.meta


def assemble(config: DatasetConfig, source: Source) -> Dataset:
    """Puts a data set together in memory; ``prepare`` writes it.

    Args:
        config: The data set's configuration.
        source: The opened source that the configuration names.

    Raises:
        UserError: The source or an option is wrong.
    """
    check_classes(source)
    train, validation = _select_train(config, source)
    test = _select(source.test, source.classes, config.test_subset, "test_subset", config.seed)
    return _read(config, source, train, validation, test)


def _tell_of_shared_images(dataset: Dataset, say: Callable[[str], object]) -> None:
    """Accuracy on images that were trained on, or chosen by, tells what was learnt by heart."""
    splits = {
        "test": dataset.test_images,
        "validation": dataset.validation_images,
        "training": dataset.train_images,
    }
    seen = {
        split: [sha256(image.tobytes()).digest() for image in images]
        for split, images in splits.items()
        if images is not None
    }
    for split, other in combinations(seen, 2):
        others = set(seen[other])
        count = sum(image in others for image in seen[split])
        if count:
            say(
                f"warning: {count} of {len(seen[split])} {split} images found among the "
                f"{other} images, pixel by pixel"
            )


def check_classes(source: Source) -> None:
    """Refuses a source that cannot be prepared for its classes.

    Raises:
        UserError: There is one class only, two have one name, a name is no valid text, or a class
            is missing from a split.
    """
    if len(source.classes) < 2:
        raise UserError(
            f"{source.train.where}: found {len(source.classes)} class; allowed: 2 or more"
        )
    for name in source.classes:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UserError(f"{source.train.where}: class {name!r}; allowed: valid Unicode names")
    name, times = Counter(source.classes).most_common(1)[0]
    if times > 1:
        raise UserError(f"{source.train.where}: two classes are called {name!r}")
    for split in (source.train, source.test):
        name = _missing_class(split.labels, source.classes)
        if name is not None:
            raise UserError(
                f"{split.where}: class {name!r} has no images; allowed: every class in both splits"
            )


def _missing_class(labels: Labels, classes: tuple[str, ...]) -> str | None:
    missing = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    return classes[missing[0]] if len(missing) else None


def _select_train(config: DatasetConfig, source: Source) -> tuple[Rows, Rows]:
    """The rows of the source's training split for training and for validation, both ascending."""
    rows = _select(source.train, source.classes, config.subset, "subset", config.seed)
    if not config.validation_fraction:
        return rows, rows[:0]
    labels = source.train.labels[rows]
    count = round(config.validation_fraction * len(rows))
    held_out = stratified(labels, count, seed=config.seed, stream=VALIDATION_STREAM)
    kept = np.setdiff1d(np.arange(len(rows)), held_out)
    for split, part in (("training", kept), ("validation", held_out)):
        name = _missing_class(labels[part], source.classes)
        if name is not None:
            raise UserError(
                f"dataset.validation_fraction: found {config.validation_fraction:g}, which leaves "
                f"class {name!r} out of the {split} split of {len(rows)}; allowed: a "
                "fraction that leaves every class in both, or 0"
            )
    return rows[kept], rows[held_out]


def _select(split: Split, classes: tuple[str, ...], count: int | None, key: str, seed: int) -> Rows:
    available = len(split.labels)
    if count is None:
        return np.arange(available)
    if not len(classes) <= count <= available:
        raise UserError(
            f"dataset.{key}: found {count}; allowed: {len(classes)} (one a class) to "
            f"{available} (all of {split.where})"
        )
    stream = TRAIN_STREAM if key == "subset" else TEST_STREAM
    return balanced(split.labels, count, seed=seed, stream=stream)


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
