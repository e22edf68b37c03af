"""The engines by name, what computes stacked lanes, and which models have stacked layers."""

from __future__ import annotations

from typing import Literal

from smallbatch.config.model_names import ALIASES

Engine = Literal["loop", "stacked"]


# What computes stacked lanes where the native kernels do not: torch, with grouped convolutions or
# with unrolled matrix products (float64, which is for tests), or Triton's kernels.
Kernels = Literal["grouped", "unrolled", "triton"]


GPU_KERNELS: tuple[Kernels, ...] = ("grouped", "triton")


def has_layers(model: str) -> bool:
    """Whether a model has layers over K lanes (`stacked_layers`): the paper's models do."""
    return model in ALIASES or model in ALIASES.values()
