"""Which part of a photograph a model sees: one by chance in training, the middle otherwise.

As ImageNet is trained on since Szegedy et al. 2015 ("Going deeper with convolutions", section 6);
the numbers are those of torchvision's `RandomResizedCrop`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SCALE = (0.08, 1.0)  # the crop's part of the image's area
RATIO = (3 / 4, 4 / 3)  # width by height
CENTRE = 0.875  # of the short side, in evaluation: 224 of 256 pixels
_TRIES = 10  # after which the middle is taken
_RESIZED = 3  # spawn key of this random stream, beside those of `protocol.stream`


class Crop(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def bottom(self) -> int:
        """The first row below it."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The first column beside it."""
        return self.left + self.width


def random_crop(seed: int, epoch: int, example: int, height: int, width: int) -> Crop:
    """A random part of an image, which is then resized to a square.

    It depends on these arguments alone: never on the batch size, the learning rate, or which
    process decodes the image.

    Args:
        seed: The run's seed.
        epoch: The number of the epoch, from 0.
        example: The image's row in the training set.
        height: Of the image in pixels.
        width: Likewise.
    """
    draws = _draws(seed, epoch, example)
    low, high = map(math.log, RATIO)
    for part, shape, down, right in draws.reshape(_TRIES, 4).tolist():
        area = height * width * (SCALE[0] + part * (SCALE[1] - SCALE[0]))
        ratio = math.exp(low + shape * (high - low))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
            return Crop(top, left, h, w)
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return _middle(height, width, h, w)


def centre_crop(height: int, width: int, ratio: float = CENTRE) -> Crop:
    """The square in the middle of an image, of this part of its short side."""
    side = max(1, round(ratio * min(height, width)))
    return _middle(height, width, side, side)


def _middle(height: int, width: int, h: int, w: int) -> Crop:
    return Crop((height - h) // 2, (width - w) // 2, h, w)


def _draws(seed: int, epoch: int, example: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), (4·_TRIES,), from raw words, which NumPy promises for ever."""
    # The second word of the counter is the example: each has 2**64 blocks of its own.
    words = np.random.Philox(key=_key(seed, epoch), counter=[0, example, 0, 0])
    raw = np.asarray(words.random_raw(4 * _TRIES), dtype=np.uint64)
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=8)
def _key(seed: int, epoch: int) -> NDArray[np.uint64]:
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(epoch, _RESIZED))
    return np.asarray(sequence.generate_state(2, np.uint64), dtype=np.uint64)
