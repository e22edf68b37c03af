"""The stream of examples: which image, which crop, which flip, at every position.

Common random numbers (docs/decisions.md): everything here is a function of the seed and the
epoch alone, never of the batch size or the learning rate, so all cells of a seed see one stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

PAD = 4  # pixels of zeros on every side before the random crop

# `stream_digest` of this protocol. NumPy promises its raw words for ever, not what permutation(),
# integers() and random() make of them.
DIGEST = "edfa8d601a492986"

# Spawn keys of the independent random streams of one (seed, epoch).
_ORDER, _CROP, _FLIP = range(3)


@dataclass(frozen=True)
class Examples:
    """A stretch of the stream: ``n`` positions.

    Attributes:
        index: rows of the training set, int64 (n,).
        top, left: corner of the crop in the padded image, 0 … 2·PAD pixels, int64 (n,).
        flip: mirror horizontally, bool (n,).
    """

    index: NDArray[np.int64]
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    flip: NDArray[np.bool_]

    def __getitem__(self, part: slice) -> Examples:
        return Examples(self.index[part], self.top[part], self.left[part], self.flip[part])

    def __len__(self) -> int:
        return len(self.index)


def epoch_examples(seed: int, epoch: int, n: int) -> Examples:
    """One epoch of the stream: a fresh permutation of ``n`` examples with their crops and flips.

    Args:
        seed: the run's seed.
        epoch: from 0.
        n: size of the training set.
    """

    def generator(stream: int) -> np.random.Generator:
        sequence = np.random.SeedSequence(entropy=seed, spawn_key=(epoch, stream))
        return np.random.Generator(np.random.Philox(sequence))

    corners = generator(_CROP).integers(0, 2 * PAD + 1, size=(2, n))
    return Examples(
        index=generator(_ORDER).permutation(n),
        top=corners[0],
        left=corners[1],
        flip=generator(_FLIP).random(n) < 0.5,
    )


@cache
def stream_digest() -> str:
    """Hash of a piece of the stream, as the installed NumPy makes it: 16 hex digits."""
    digest = hashlib.sha256()
    for part in vars(epoch_examples(0, 1, 4099)).values():
        digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def batches(seed: int, n: int, epochs: int, batch_size: int, start: int = 0) -> Iterator[Examples]:
    """Cut joined epochs into ``floor(epochs·n / batch_size)`` batches of exactly ``batch_size``.

    A batch may straddle two epochs (or more, were it larger than the training set). The first
    ``start`` of them are left out.
    """
    for stretch in stretches(seed, n, epochs, batch_size, start):
        for first in range(0, len(stretch), batch_size):
            yield stretch[first : first + batch_size]


def stretches(
    seed: int, n: int, epochs: int, batch_size: int, start: int = 0
) -> Iterator[Examples]:
    """The same, all batches that end in one epoch at a time: a multiple of ``batch_size``."""
    first, offset = divmod(start * batch_size, n)
    pending = None
    for epoch in range(first, epochs):
        fresh = epoch_examples(seed, epoch, n)[offset if epoch == first else 0 :]
        pending = join(pending, fresh) if pending else fresh
        full = len(pending) // batch_size * batch_size
        yield pending[:full]
        pending = pending[full:]


def join(first: Examples, second: Examples) -> Examples:
    """One stretch of the stream after another."""
    return Examples(
        np.concatenate([first.index, second.index]),
        np.concatenate([first.top, second.top]),
        np.concatenate([first.left, second.left]),
        np.concatenate([first.flip, second.flip]),
    )
