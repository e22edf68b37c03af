"""Which kernels compute lanes."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal

import torch

# Convolutions by torch's grouped ones; by unrolled matrix products, which float64 has everywhere;
# the whole step by Triton's kernels.
Kernels = Literal["grouped", "unrolled", "triton"]


def default_kernels(device: torch.device, dtype: torch.dtype) -> Kernels:
    """Triton's on a GPU where they work; float64, which is for tests, by matrix products."""
    if dtype != torch.float32:
        return "unrolled"
    return "triton" if device.type == "cuda" and triton_works(device.type) else "grouped"


@cache
def triton_works(device: str) -> bool:
    """Whether Triton's kernels compile and give torch's numbers, tried once; a warning if not."""
    try:
        from smallbatch.training.stacked.triton import inputs, norms, tail

        right = all(part.agrees(torch.device(device)) for part in (inputs, norms, tail))
        reason = "wrong numbers"
    except Exception as error:  # noqa: BLE001 - a compiler's own errors
        right, reason = False, str(error).strip()[:200]
    if not right:
        warnings.warn(f"stacked lanes do without Triton's kernels: {reason}", stacklevel=3)
    return right
