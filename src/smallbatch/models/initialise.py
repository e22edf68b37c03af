"""The initialisation of He et al. 2015 ("Delving deep into rectifiers"), as in the paper."""

import torch
from torch import nn


def he_initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw every conv and FC weight from N(0, 2 / fan_in), in module order; zero their biases.

    Normalisation layers stay at the identity and draw nothing, so that a seed gives the same
    weights with every norm.

    Args:
        module: The model, or a single layer.
        generator: Source of the random numbers; torch's global one by default.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(
                layer.weight, mode="fan_in", nonlinearity="relu", generator=generator
            )
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
