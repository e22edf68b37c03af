"""Noise of made-up accuracies, of about one point: what real seeds may do and a rule must bear."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Shape: TypeAlias = tuple[int, int, int, int]  # draws, batch sizes, cells of each, seeds
Noise: TypeAlias = Callable[[np.random.Generator, Shape], Floats]


def normal(rng: np.random.Generator, shape: Shape) -> Floats:
    """Independent, normal."""
    return rng.normal(size=shape)


def effects(rng: np.random.Generator, shape: Shape) -> Floats:
    """A seed that is good everywhere, and one that is good at one m, as well as noise."""
    draws, sizes, _, seeds = shape
    everywhere = rng.normal(size=(draws, 1, 1, seeds))
    at_one = rng.normal(size=(draws, sizes, 1, seeds))
    return everywhere + np.sqrt(0.5) * (at_one + rng.normal(size=shape))


def heavy(rng: np.random.Generator, shape: Shape) -> Floats:
    """Student's t with three degrees of freedom, of variance one."""
    return rng.standard_t(3, size=shape) / np.sqrt(3)


def rising(rng: np.random.Generator, shape: Shape) -> Floats:
    """A standard deviation that rises from 0.5 to 1.5 over m."""
    return rng.normal(size=shape) * np.linspace(0.5, 1.5, shape[1])[:, np.newaxis, np.newaxis]


def wild(rng: np.random.Generator, shape: Shape) -> Floats:
    """Two m with three times the noise of the others; of two or fewer, the first."""
    scale = np.ones(shape[1])
    scale[[0] if shape[1] <= 2 else [0, shape[1] // 2]] = 3
    return rng.normal(size=shape) * scale[:, np.newaxis, np.newaxis]


NOISES: dict[str, Noise] = {
    "normal": normal,
    "seed and m × seed effects": effects,
    "t with 3 degrees": heavy,
    "σ from 0.5 to 1.5 over m": rising,
    "two m with 3 × σ": wild,
}
WILD = "two m with 3 × σ"
"""The noise at which more errors are allowed."""
