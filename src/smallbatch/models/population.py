"""Exact batch-norm statistics of a population, in place of running averages (docs/decisions.md)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BatchNormLayer = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norms(model: nn.Module) -> Iterator[BatchNormLayer]:
    """Every batch norm of the model, ghost batch norms and timm's subclasses included."""
    for module in model.modules():
        if isinstance(module, BatchNormLayer):
            yield module


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer normalises by statistics of the batch."""
    return any(True for _ in batch_norms(model))


@torch.no_grad()
def recompute_population_statistics(model: nn.Module, images: Tensor) -> None:
    """Replace all running statistics by the exact ones of `images`, taken as one population.

    Layer after layer: a batch norm's input is computed with the population's statistics in every
    layer before it; its mean and biased variance become the running statistics and normalise the
    same input. In evaluation mode the model then treats `images` as this pass did. Ghost batch
    norms take the whole population too; dropout and the like are off. Modes are left as found.

    The population passes through each layer at once, which takes memory for a few of the widest
    activations (ResNet at 32×32: 64 KiB per image and activation): the caller caps the images.

    Args:
        model: Any model; without batch norm nothing happens.
        images: (N, C, H, W), on the model's device, normalised as for evaluation.

    Raises:
        ValueError: A layer sees a single value per channel, which has no variance.
    """
    layers = list(batch_norms(model))
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_pre_hook(_adopt_statistics) for layer in layers]
    try:
        model.eval()
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def _adopt_statistics(layer: BatchNormLayer, inputs: tuple[Any, ...]) -> None:
    """Set the running statistics of a batch norm to those of the input it is about to see."""
    if layer.running_mean is None or layer.running_var is None:
        return
    x: Tensor = inputs[0]
    # Zeroed first: 0 · NaN would keep the NaN of a diverged average.
    mean, var = layer.running_mean.zero_(), layer.running_var.zero_()
    F.batch_norm(x, mean, var, training=True, momentum=1.0, eps=layer.eps)
    values = x.numel() // x.shape[1]
    var.mul_((values - 1) / values)  # torch keeps the unbiased variance
