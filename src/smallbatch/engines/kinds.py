"""The names of the engines and of kernels, and which models have layers over lanes."""

from __future__ import annotations

from typing import Literal

from smallbatch.config.model_names import ALIASES

Engine = Literal["loop", "stacked"]


# The kernels of the stacked engine other than the native ones: torch's grouped convolutions,
# torch's matrix products on unrolled input (for float64, which only tests use), and Triton's.
Kernels = Literal["grouped", "unrolled", "triton"]


GPU_KERNELS: tuple[Kernels, ...] = ("grouped", "triton")


def has_layers(model: str) -> bool:
    """Whether the stacked engine has layers for a model, as it has for the paper's models."""
    return model in ALIASES or model in ALIASES.values()
