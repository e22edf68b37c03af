"""Floating-point operations of a model, counted layer by layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(model: nn.Module, channels: int, size: int) -> int:
    """Operations of one image's forward pass.

    Those of convolutions and matrix products, two for each multiply-add; norms, activations and
    poolings, which are bound by memory instead, are left out.

    Args:
        model: any plain model.
        channels: of an image.
        size: of an image in pixels, height and width.
    """
    training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, size, size))
    model.train(training)
    return counter.get_total_flops()


def training_flops(forward: int) -> int:
    """Operations of one training image: the forward pass and twice as many backward.

    The backward pass computes two products of the forward's size per layer, the gradients of its
    weights and of its input.
    """
    return 3 * forward
