"""Tensors for the kernels' tests: on a GPU if there is one, otherwise for Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GAP = 7.0  # stands where nothing may be written


def noise(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE)


def in_rows(*lead: int, shape: tuple[int, ...], room: int = 32) -> tuple[Tensor, Tensor]:
    """Rows (*lead, P) of GAP, and a view (*lead, *shape) into them as lanes have it.

    It begins 16 values in, and ``room`` more follow.
    """
    size = torch.Size(shape).numel()
    rows = torch.full((*lead, 16 + size + room), GAP, device=DEVICE)
    return rows, rows[..., 16 : 16 + size].unflatten(-1, shape)


def channels_first(x: Tensor) -> Tensor:
    """(…, H, W, C) → (…, C, H, W)."""
    return x.movedim(-1, -3)


def near(one: Tensor, other: Tensor, rel: float = 2e-5) -> None:
    """Equal within a part of the largest value: what sums of float32 in another order give."""
    scale = max(1.0, float(other.abs().max()))
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=rel * scale)
