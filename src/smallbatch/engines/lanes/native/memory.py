"""The memory that the kernels use: positions of parameters in a lane's row, groups' vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbatch.engines.lanes.native.compile import LANES

LINE = 32  # bytes of a vector of floats
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


def aligned(size: int, dtype: type[np.floating[Any]], after: int = 0) -> NDArray[Any]:
    """Zeros that start at a multiple of a vector's size; by default soon after a page's start.

    Args:
        size: The number of values.
        dtype: Their type.
        after: Bytes, below a page, by which they start later.
    """
    boundary = LANES * np.dtype(dtype).itemsize
    memory = np.zeros(size * np.dtype(dtype).itemsize + boundary + after, np.uint8)
    start = -memory.ctypes.data % boundary + after
    return memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)


def repeated(rows: NDArray[Any], parts: int) -> NDArray[Any]:
    """A group's rows (lanes, P) as vectors (P, LANES), each row in all places of its run.

    Places without a run are like those of the first.
    """
    return _filled(rows.T.repeat(parts, axis=1))


def in_blocks(rows: NDArray[Any], parts: int, number: int) -> NDArray[Any]:
    """A group's rows (lanes, P) as vectors (⌈P/parts⌉, LANES): the blocks of `optimisers.cpp`.

    An update goes through the weights and up to two moments side by side. Addresses at the same
    distance from a page's start would hold each other up, so each ``number`` has its own.
    """
    lanes, values = rows.shape
    filled = np.pad(rows, ((0, 0), (0, -values % parts)))
    blocks = filled.reshape(lanes, -1, parts).swapaxes(0, 1).reshape(-1, lanes * parts)
    return _filled(blocks, (1 + number) * APART)


def from_blocks(vectors: NDArray[Any], parts: int, values: int) -> NDArray[Any]:
    """The rows (LANES/parts, P) of a group's blocks."""
    blocks = vectors.reshape(len(vectors), -1, parts)
    return blocks.swapaxes(0, 1).reshape(blocks.shape[1], -1)[:, :values]


def _filled(own: NDArray[Any], after: int = 0) -> NDArray[Any]:
    vectors = aligned(len(own) * LANES, own.dtype.type, after).reshape(-1, LANES)
    vectors[:, : own.shape[1]] = own
    vectors[:, own.shape[1] :] = own[:, :1]
    return vectors
