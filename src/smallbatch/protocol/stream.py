"""The stream of examples: which image, which crop and which flip, at every position.

It depends on the seed and the epoch alone, never on the batch size or the learning rate. So all
cells of a seed see the same stream: common random numbers (docs/decisions.md).
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

# Spawn keys of independent random number streams for a (seed, epoch).
_ORDER, _CROP, _FLIP = range(3)


@dataclass(frozen=True)
class Examples:
    """A part of the stream, of ``n`` positions.

    Attributes:
        index: Rows of the training set, int64 (n,).
        top, left: The corner of the crop in the padded image, 0 … 2·PAD pixels, int64 (n,).
        flip: Whether the image is mirrored horizontally, bool (n,).
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
    """An epoch of the stream: a new permutation of ``n`` examples, with their crops and flips.

    Args:
        seed: The seed of the run.
        epoch: The number of the epoch, from 0.
        n: The size of the training set.
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
    """Divide the stream of all epochs into ``floor(epochs·n / batch_size)`` batches.

    Each has exactly ``batch_size`` examples, so a batch may contain the end of one epoch and the
    beginning of the next. The first ``start`` batches are left out.
    """
    for stretch in stretches(seed, n, epochs, batch_size, start):
        for first in range(0, len(stretch), batch_size):
            yield stretch[first : first + batch_size]


def stretches(
    seed: int, n: int, epochs: int, batch_size: int, start: int = 0
) -> Iterator[Examples]:
    """Like `batches`, but all batches that end in the same epoch come as one part."""
    first, offset = divmod(start * batch_size, n)
    pending = None
    for epoch in range(first, epochs):
        fresh = epoch_examples(seed, epoch, n)[offset if epoch == first else 0 :]
        pending = join(pending, fresh) if pending else fresh
        full = len(pending) // batch_size * batch_size
        yield pending[:full]
        pending = pending[full:]


def join(first: Examples, second: Examples) -> Examples:
    """Two parts of the stream as one."""
    return Examples(
        np.concatenate([first.index, second.index]),
        np.concatenate([first.top, second.top]),
        np.concatenate([first.left, second.left]),
        np.concatenate([first.flip, second.flip]),
    )
