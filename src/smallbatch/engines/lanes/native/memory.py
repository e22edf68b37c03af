"""The memory that the kernels use: positions of parameters in a lane's row, groups' vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = 4096  # bytes
APART = 1344  # bytes, about a third of a page, from one moment's start in its page to the next's
SPREAD = 10  # vectors, modulo a page, from one channel to the next


def lay_out(values: dict[str, Any]) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Offset and shape of each value in a lane's row, and the row's length."""
    places: dict[str, tuple[int, tuple[int, ...]]] = {}
    start = 0
    for name, value in values.items():
        places[name] = start, tuple(value.shape)
        start += value.numel()
    return places, start


def aligned(
    vectors: int, width: int, dtype: type[np.floating[Any]], after: int = 0
) -> NDArray[Any]:
    """Zeros that start at a multiple of a vector's size; by default soon after a page's start.

    Args:
        vectors: The number of vectors.
        width: The numbers of a vector.
        dtype: Their type.
        after: Bytes, below a page, by which they start later: a multiple of a vector's size.
    """
    boundary = width * np.dtype(dtype).itemsize
    memory = np.zeros((vectors + 1) * boundary + after, np.uint8)
    start = -memory.ctypes.data % boundary + after
    return memory[start : start + vectors * boundary].view(dtype)


def by_value(rows: NDArray[Any], lanes: int, width: int, number: int = 0) -> NDArray[Any]:
    """A group's rows (≤ lanes, P) as numbers (P · lanes), filled up to whole vectors with zeros.

    Lanes without a run are like the first. An update goes through weights and up to two moments
    side by side. Addresses at the same distance from a page's start would hold each other up, so
    each ``number`` has its own.
    """
    own, values = rows.shape
    after = number * APART // (width * rows.itemsize) * width * rows.itemsize
    memory = aligned(-(-values * lanes // width), width, rows.dtype.type, after)
    filled = memory[: values * lanes].reshape(values, lanes)
    filled[:, :own] = rows.T
    filled[:, own:] = rows[:1].T
    return memory


def by_lane(numbers: NDArray[Any], lanes: int, values: int) -> NDArray[Any]:
    """The rows (lanes, P) of a group's numbers."""
    return numbers[: values * lanes].reshape(values, lanes).T
