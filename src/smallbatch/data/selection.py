"""Selects rows of a split: class-balanced subsets and stratified parts.

The randomness comes from raw 64-bit words of PCG64. NumPy guarantees these across versions, but not
``permutation`` or ``shuffle``. So the same seed selects the same rows on every machine.
"""

import hashlib

import numpy as np
import numpy.typing as npt

from smallbatch.data.split import Labels, Rows

TRAIN_STREAM, TEST_STREAM, VALIDATION_STREAM, DIGITS_STREAM, HELD_OUT_STREAM = range(5)


def balanced(labels: Labels, count: int, *, seed: int, stream: int) -> Rows:
    """Selects ``count`` rows, with equal numbers for all classes as far as their sizes allow.

    The numbers differ by at most one, except that a class with fewer rows is taken completely. With
    the same seed, a smaller selection is part of every larger one.

    Args:
        labels: Class indices (N,).
        count: The number of rows, at most N.
        seed: The data set's seed.
        stream: Which of the independent random streams of the seed.

    Returns:
        Ascending row numbers (count,).
    """
    ranks, words = _ranks_within_class(labels, seed, stream)
    return np.sort(np.lexsort((words, ranks))[:count])


def stratified(labels: Labels, count: int, *, seed: int, stream: int) -> Rows:
    """Selects ``count`` rows in which each class keeps its share of all rows.

    By the Webster rule, the rows with the lowest (rank + 1/2) / class size are selected.

    Args:
        labels: Class indices (N,).
        count: The number of rows, at most N.
        seed: The data set's seed.
        stream: Which of the independent random streams of the seed.

    Returns:
        Ascending row numbers (count,).
    """
    ranks, words = _ranks_within_class(labels, seed, stream)
    share = (ranks + 0.5) / np.bincount(labels)[labels]
    return np.sort(np.lexsort((words, share))[:count])


def _ranks_within_class(
    labels: Labels, seed: int, stream: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64]]:
    """The rank 0, 1, 2, … of each row in a random order of its class; and the random words."""
    generator = np.random.PCG64(np.random.SeedSequence([seed, stream]))
    words = np.asarray(generator.random_raw(len(labels)), dtype=np.uint64)
    order = np.lexsort((words, labels))
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    ranks = np.empty(len(labels), dtype=np.intp)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return ranks, words


def by_content(
    labels: Labels, digests: npt.NDArray[np.uint8], count: int, *, seed: int
) -> npt.NDArray[np.bool_]:
    """Selects about ``count`` rows, each class by its share, by what they hold and not where.

    Of each class those with the lowest SHA-256 of seed and digest. Rows of a class with the same
    content are selected together, so that a few more may be.

    Args:
        labels: Class indices (N,).
        digests: Digests of the contents (N, B).
        count: The number of rows, at most N.
        seed: The data set's seed.

    Returns:
        Whether a row is selected (N,).
    """
    prefix = hashlib.sha256(seed.to_bytes(8, "little"))
    words = np.empty(len(labels), dtype=np.uint64)
    for row, digest in enumerate(digests):
        hashed = prefix.copy()
        hashed.update(digest.tobytes())
        words[row] = int.from_bytes(hashed.digest()[:8], "big")
    order = np.lexsort((words, labels))
    sizes = np.bincount(labels)
    ranks = np.empty(len(labels), dtype=np.intp)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.lexsort((words, (ranks + 0.5) / sizes[labels]))[:count]
    contents = np.rec.fromarrays([labels, words])
    return np.isin(contents, contents[chosen])
