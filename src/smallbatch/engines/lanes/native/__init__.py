"""C++ kernels for K lanes on a CPU, and what builds and feeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.engines.kinds import has_layers
from smallbatch.engines.lanes.native.compile import available, version

__all__ = ["serves", "version"]

if TYPE_CHECKING:
    import torch

    from smallbatch.config.params import StudyConfig


def serves(study: StudyConfig, device: torch.device | str) -> bool:
    """Whether a study's lanes are computed by the kernels: the paper's models in float32, on a CPU
    that has a C++ compiler.
    """  # noqa: D205
    served = has_layers(study.model) and study.precision == "float32"
    return str(device) == "cpu" and served and available()
