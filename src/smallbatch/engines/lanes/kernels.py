"""Which kernels compute the lanes by default."""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING

import torch

from smallbatch.engines.kinds import Kernels
from smallbatch.errors import first_line

if TYPE_CHECKING:
    from smallbatch.config.study import Precision


def default_kernels(device: torch.device, dtype: torch.dtype, precision: Precision) -> Kernels:
    """Triton's on a GPU where they work; for float64, which only tests use, matrix products."""
    if dtype != torch.float32:
        return "unrolled"
    works = device.type == "cuda" and triton_works(device, precision)
    return "triton" if works else "grouped"


@cache
def triton_works(device: torch.device, precision: Precision) -> bool:
    """Whether Triton's kernels compile and agree with torch; if not, prints one line.

    The answer is found once and then remembered.
    """
    try:
        from smallbatch.engines.lanes.triton import convs, heads, inputs, norms, tail

        right = convs.agrees(device, precision)
        right = right and all(part.agrees(device) for part in (heads, inputs, norms, tail))
        reason = "" if right else "wrong numbers"
    except Exception as error:  # noqa: BLE001 - a compiler's own errors
        reason = first_line(error)
    if reason:
        line = f"Triton's kernels are left out in {precision}: {reason}"
        print(line, file=sys.stderr, flush=True)
    return not reason
