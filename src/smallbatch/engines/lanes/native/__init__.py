"""C++ kernels for K lanes on a CPU, and the code that compiles and calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.engines.kinds import has_layers
from smallbatch.engines.lanes.native.compile import available, version

__all__ = ["takes", "version"]

if TYPE_CHECKING:
    import torch

    from smallbatch.config.params import StudyConfig


def takes(study: StudyConfig, device: torch.device | str) -> bool:
    """Whether a study's lanes are computed by these kernels.

    They are for the paper's models in float32, on a CPU, and need a C++ compiler.
    """
    served = has_layers(study.model) and study.precision == "float32"
    return str(device) == "cpu" and served and available()
