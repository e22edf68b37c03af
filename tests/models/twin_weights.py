"""A second implementation of the initial weights, in float64, from docs/random-numbers.md."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

BITS32 = 2**32 - 1


def started(seed: int) -> list[int]:
    """The Mersenne Twister's 624 words for a seed, of which it takes the lowest 32 bits."""
    state = [seed & BITS32]
    for i in range(1, 624):
        state.append(1812433253 * (state[-1] ^ state[-1] >> 30) + i & BITS32)
    return state


def tempered(y: int) -> int:
    y ^= y >> 11
    y ^= y << 7 & 0x9D2C5680
    y ^= y << 15 & 0xEFC60000
    return y ^ y >> 18


def twister_words(start: Sequence[int]) -> Iterator[int]:
    """MT19937: words of 32 bits."""
    state = list(start)
    while True:
        for i in range(624):
            y = state[i] & 0x80000000 | state[(i + 1) % 624] & 0x7FFFFFFF
            state[i] = state[(i + 397) % 624] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
        yield from map(tempered, state)


def normals(count: int, words: Iterator[int]) -> NDArray[np.float64]:
    """Box and Muller's standard normal numbers, in groups of 16."""
    u = np.array([word % 2**24 / 2**24 for word in islice(words, count)])
    first, second = u.reshape(-1, 2, 8).swapaxes(0, 1)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), 2 * np.pi * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()


def he_weights(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float64]]:
    """The weights of a model's convolutions and FC layers, from its input to its output."""
    words = twister_words(started(seed))
    weights: list[NDArray[np.float64]] = []
    for shape in shapes:
        fan_in = math.prod(shape[1:])
        weights.append(math.sqrt(2 / fan_in) * normals(math.prod(shape), words).reshape(shape))
    return weights
