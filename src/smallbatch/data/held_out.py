"""The test split of a source that has none: a share of its images, held out before all else."""

from collections.abc import Iterator

import numpy as np

from smallbatch.data.selection import HELD_OUT_STREAM, balanced, stratified
from smallbatch.data.split import Encoded, Images, Rows, Split
from smallbatch.errors import UserError
from smallbatch.text import count


def hold_out(
    pool: Split, classes: tuple[str, ...], fraction: float, seed: int
) -> tuple[Split, Split]:
    """Parts all images of a source into a training and a test split.

    Each class keeps its share (``stratified``), but a class too small for a test image by that has
    one all the same.

    Args:
        pool: All images, N of them.
        classes: The names of the classes, in label order.
        fraction: The share of the images that is held out, in 0..1.
        seed: The data set's seed.

    Returns:
        The training and the test split: disjoint, together the pool.

    Raises:
        UserError: A class has too few images to be in both.
    """
    labels = pool.labels
    sizes = np.bincount(labels, minlength=len(classes))
    for name, size in zip(classes, sizes.tolist(), strict=True):
        if size < 2:
            raise UserError(
                f"{pool.where}: class {name!r} has {count(size, 'image')}; allowed: at least 2 a "
                "class, one to train on and one held out to test on"
            )
    share = stratified(labels, round(fraction * len(labels)), seed=seed, stream=HELD_OUT_STREAM)
    # The first of each class in the same random order: in the share, unless that has none of it.
    firsts = balanced(labels, len(classes), seed=seed, stream=HELD_OUT_STREAM)
    test = np.union1d(share, firsts)
    train = np.setdiff1d(np.arange(len(labels)), test)
    left = np.bincount(labels[train], minlength=len(classes))
    if not left.all():
        name = classes[int(np.argmin(left))]
        raise UserError(
            f"dataset.test_fraction: found {fraction:g}, which holds out all images of class "
            f"{name!r} of {pool.where}; allowed: a smaller fraction"
        )
    return _part(pool, train, "training"), _part(pool, test, "test")


def _part(pool: Split, members: Rows, name: str) -> Split:
    def read(rows: Rows) -> Images:
        return pool.read(members[rows])

    def encoded(rows: Rows) -> Iterator[Encoded]:
        assert pool.encoded is not None  # noqa: S101 - by the condition below
        return pool.encoded(members[rows])

    where = f"{pool.where} ({name} part)"
    return Split(where, pool.labels[members], read, encoded if pool.encoded else None)
