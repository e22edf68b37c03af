"""He et al. 2015 initialisation ("Delving deep into rectifiers"), which the paper names."""

import torch
from torch import nn


def he_initialise(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw every conv and FC weight from N(0, 2 / fan_in), in module order; zero their biases.

    Normalisation layers keep their identity and draw nothing, so the weights of one seed are the
    same whichever norm is chosen.

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
