"""Which rows of a source make the splits of a data set, and what is told of them."""

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from smallbatch.config.params import DatasetConfig
from smallbatch.data.selection import (
    TEST_STREAM,
    TRAIN_STREAM,
    VALIDATION_STREAM,
    balanced,
    stratified,
)
from smallbatch.data.split import Labels, Rows, Source, Split
from smallbatch.errors import UserError

# Digests of images, all of one length: NumPy compares them without the zeros at their ends.
Digests: TypeAlias = npt.NDArray[np.bytes_]


def tell_of_shared(seen: dict[str, Digests], how: str, say: Callable[[str], object]) -> None:
    """Accuracy on images that were trained on, or chosen by, tells what was learnt by heart.

    Args:
        seen: The digests of each split's images, of the splits that come later in use first.
        how: In what way images are the same that have the same digest.
        say: Takes a line for each two splits that share images.
    """
    for split, other in combinations(seen, 2):
        count = np.isin(seen[split], seen[other]).sum()
        if count:
            say(
                f"warning: {count} of {len(seen[split])} {split} images found among the "
                f"{other} images, {how}"
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


def select_train(config: DatasetConfig, source: Source) -> tuple[Rows, Rows]:
    """The rows of the source's training split for training and for validation, both ascending.

    Raises:
        UserError: There are not as many, or one of the two would lack a class.
    """
    rows = select(source.train, source.classes, config.subset, "subset", config.seed)
    if not config.validation_fraction:
        return rows, rows[:0]
    labels = source.train.labels[rows]
    count = round(config.validation_fraction * len(rows))
    held_out = stratified(labels, count, seed=config.seed, stream=VALIDATION_STREAM)
    kept = np.setdiff1d(np.arange(len(rows)), held_out)
    check_parts(config, source.classes, labels, kept, held_out)
    return rows[kept], rows[held_out]


def check_parts(
    config: DatasetConfig,
    classes: tuple[str, ...],
    labels: Labels,
    kept: Rows,
    held_out: Rows,
) -> None:
    """Refuses a validation split, or what it leaves to train on, that lacks a class.

    Raises:
        UserError: One does.
    """
    for split, part in (("training", kept), ("validation", held_out)):
        name = _missing_class(labels[part], classes)
        if name is not None:
            raise UserError(
                f"dataset.validation_fraction: found {config.validation_fraction:g}, which leaves "
                f"class {name!r} out of the {split} split of {len(labels)}; allowed: a "
                "fraction that leaves every class in both, or 0"
            )


def select(split: Split, classes: tuple[str, ...], count: int | None, key: str, seed: int) -> Rows:
    """The rows of a split that ``subset`` or ``test_subset``, the key, leaves; ascending.

    Raises:
        UserError: There are not as many, or fewer than one a class.
    """
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
