"""The memory that the kernels use: positions of parameters in a lane's row, aligned buffers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallbatch.engines.lanes.native.compile import LANES

LINE = 32  # bytes of a vector of floats
SPREAD = 10  # vectors, modulo a page, from one channel to the next


def lay_out(values: dict[str, Any]) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    """Offset and shape of each value in a lane's row, and the row's length."""
    places: dict[str, tuple[int, tuple[int, ...]]] = {}
    start = 0
    for name, value in values.items():
        places[name] = start, tuple(value.shape)
        start += value.numel()
    return places, start


def aligned(size: int, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Zeros that start at a multiple of a vector's size."""
    boundary = LANES * np.dtype(dtype).itemsize
    memory = np.zeros(size * np.dtype(dtype).itemsize + boundary, np.uint8)
    start = -memory.ctypes.data % boundary
    return memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)
