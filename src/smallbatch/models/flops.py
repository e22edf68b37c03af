"""Floating-point operations of a model, counted layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smallbatch.models.alexnet import AlexNet
from smallbatch.models.resnet import ResNet


def forward_flops(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Operations of one image's forward pass.

    Only convolutions and matrix products are counted, as two operations for each multiply-add.
    Norms, activations and poolings are left out, as memory limits them, not arithmetic.

    Args:
        model: Any plain model.
        image: Channels, height and width in pixels.
    """
    training = model.training
    model.eval()
    with torch.no_grad():
        flops = _count(model, torch.zeros(1, *image))
    model.train(training)
    return flops


def _count(model: nn.Module, images: Tensor) -> int:
    if not isinstance(model, ResNet | AlexNet):
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            model(images)
        return counter.get_total_flops()

    # All products of the paper's models are in layers; torch's counter takes a second to import.
    flops = 0

    def add(layer: Any, _args: object, output: Tensor) -> None:
        nonlocal flops
        flops += 2 * output.numel() * layer.weight[0].numel()

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    model(images)
    for hook in hooks:
        hook.remove()
    return flops


def training_flops(forward: int) -> int:
    """Operations of one training image: three times those of the forward pass.

    The backward pass computes two products of the forward's size per layer, the gradients of its
    weights and of its input.
    """
    return 3 * forward
