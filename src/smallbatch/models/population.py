"""Exact batch norm statistics over many images, instead of running ones (docs/decisions.md)."""

import math
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smallbatch.models.norms import GhostBatchNorm, summed_exactly

BatchNormLayer = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def batch_norms(model: nn.Module) -> Iterator[BatchNormLayer]:
    """Every batch norm of the model, including ghost batch norms and timm's subclasses."""
    for module in model.modules():
        if isinstance(module, BatchNormLayer):
            yield module


def moving_batch_norms(model: nn.Module) -> Iterator[BatchNormLayer]:
    """Every batch norm that normalises by statistics of the batch in training."""
    return (layer for layer in batch_norms(model) if layer not in _kept)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any layer normalises by statistics of the batch in training."""
    return any(True for _ in moving_batch_norms(model))


def needs_whole_batch(model: nn.Module) -> bool:
    """Whether a layer's statistics in training are those of the whole batch, of no part of it."""
    return any(not isinstance(layer, GhostBatchNorm) for layer in moving_batch_norms(model))


def together_in_parts(model: nn.Module) -> int:
    """Examples of which a part of a batch holds a multiple: its ghost batch norms' sub-batches."""
    sizes = (it.bn_batch_size for it in moving_batch_norms(model) if isinstance(it, GhostBatchNorm))
    return math.lcm(*sizes)


# Batch norms that stay in evaluation mode.
_kept: WeakSet[nn.Module] = WeakSet()


def keep_in_evaluation(layer: BatchNormLayer) -> None:
    """Let a batch norm normalise by its present statistics, in training mode too."""

    def stay(_mode: bool = True) -> nn.Module:
        return layer

    layer.eval()
    layer.__dict__["train"] = stay
    _kept.add(layer)


@torch.no_grad()
def recompute_population_statistics(model: nn.Module, images: Tensor) -> None:
    """Replace all running statistics by the exact ones of `images`, taken as one population.

    This is done layer by layer: the input of a batch norm is computed with exact statistics in all
    earlier layers. Its mean and biased variance become the running statistics and normalise this
    same input. So in evaluation mode the model later treats `images` in exactly this way. Ghost
    batch norms also use the whole population, and dropout is off. The modes of the modules do not
    change. Batch norms that stay in evaluation mode keep their statistics.

    All images pass through each layer at once, which takes memory for a few of the largest
    activations (ResNet at 32×32: 64 KiB per image and activation). The caller limits the images.

    Args:
        model: Any model; without batch norm nothing happens.
        images: (N, C, H, W), on the model's device, normalised as for evaluation.

    Raises:
        ValueError: A layer sees a single value per channel, so that there is no variance.
    """
    layers = [*moving_batch_norms(model)]
    if not layers:
        return
    modes = [(module, module.training) for module in model.modules()]
    hooks = [layer.register_forward_pre_hook(_adopt_statistics) for layer in layers]
    try:
        model.eval()
        model(images.clone())  # a copy, as a model may work in place
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training


def _adopt_statistics(layer: BatchNormLayer, inputs: tuple[Any, ...]) -> None:
    """Set the running statistics of a batch norm to those of its input."""
    if layer.running_mean is None or layer.running_var is None:
        return
    x = summed_exactly(inputs[0])
    # Set to 0 first, because a NaN of the old average would remain: 0 · NaN is NaN.
    mean, var = layer.running_mean.zero_(), layer.running_var.zero_()
    F.batch_norm(x, mean, var, training=True, momentum=1.0, eps=layer.eps)
    values = x.numel() // x.shape[1]
    var.mul_((values - 1) / values)  # from torch's unbiased variance to the biased one
