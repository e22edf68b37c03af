"""One Triton kernel that reads an update's images from the data set, cropped and mirrored."""

# ruff: noqa: N803 - constants of a kernel are in upper case
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from smallbatch.protocol.stream import PAD


@triton.jit
def gather(
    examples, images, labels, counter, out, out_labels, count,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    AUGMENT: tl.constexpr, MARGIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copies a block of one example's pixels, with 0 beyond the image's edge, and its label."""
    example = tl.program_id(0)
    row = examples + tl.load(counter) * (4 * count) + example
    index = tl.load(row)
    if tl.program_id(1) == 0:
        tl.store(out_labels + example, tl.load(labels + index))
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c, x, y = i % C, i // C % W, i // (C * W)
    inside = i < H * W * C
    if AUGMENT:
        mirrored = tl.load(row + 3 * count) != 0
        x = tl.where(mirrored, W - 1 - x, x) + tl.load(row + 2 * count) - MARGIN
        y += tl.load(row + count) - MARGIN
        inside = inside & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    values = tl.load(images + index * (H * W * C) + (y * W + x) * C + c, mask=inside, other=0.0)
    tl.store(out + example.to(tl.int64) * (H * W * C) + i, values, mask=i < H * W * C)


# Typed Any, because the kernel's constants are passed as plain numbers.
_GATHER: Any = gather


def gathered(
    examples: Tensor, images: Tensor, labels: Tensor, counter: Tensor, augment: bool
) -> tuple[Tensor, Tensor]:
    """Images (S·m, H, W, C) and labels (S·m,) of the current update.

    Args:
        examples: (updates, 4, S, m): row in the training set, top, left, mirrored or not.
        images: (N, H, W, C), contiguous.
        labels: (N,).
        counter: The number of the update within the epoch, from 0, (1,).
        augment: Whether to crop and mirror.
    """
    count, (_, h, w, c) = examples[0, 0].numel(), images.shape
    out, out_labels = images.new_empty(count, h, w, c), labels.new_empty(count)
    block = min(1024, max(32, 1 << (h * w * c - 1).bit_length()))
    _GATHER[(count, -(-h * w * c // block))](
        examples, images, labels, counter, out, out_labels, count,
        H=h, W=w, C=c, AUGMENT=augment, MARGIN=PAD, BLOCK=block,
    )  # fmt: skip
    return out, out_labels


def agrees(device: torch.device) -> bool:
    """Whether the kernel gives the right pixels on a device, for one small example."""
    images = torch.arange(2 * 2 * 3 * 5, device=device, dtype=torch.float32).view(2, 3, 5, 2)
    labels = torch.tensor([7, 8], device=device)
    examples = torch.tensor([[0], [0], [0], [0], [1], [PAD + 1], [PAD - 1], [1]], device=device)
    counter = torch.ones(1, dtype=torch.int64, device=device)
    out, found = gathered(examples.view(2, 4, 1, 1), images, labels, counter, True)
    # One row down, one column left and mirrored: column x shows column 3 − x, the last one 0.
    expected = torch.zeros_like(images[1])
    expected[:2, :4] = images[1][1:, :4].flip(1)
    return bool((out[0] == expected).all()) and found.tolist() == [8]
