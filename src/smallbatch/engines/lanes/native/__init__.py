"""C++ kernels for K lanes on a CPU, and the code that compiles and calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.engines.kinds import has_layers
from smallbatch.engines.lanes.native.compile import available, failure, version

__all__ = ["left_out", "takes", "version"]

if TYPE_CHECKING:
    import torch

    from smallbatch.config.study import StudyConfig


def takes(study: StudyConfig, device: torch.device | str) -> bool:
    """Whether a study's lanes are computed by these kernels.

    They are for the paper's models in float32, on a CPU, and need a C++ compiler.
    """
    return _are_for(study, device) and available()


def left_out(study: StudyConfig, device: torch.device | str) -> str | None:
    """Why these kernels do not compute lanes that they are for, in one line; else None."""
    return failure() if _are_for(study, device) else None


def _are_for(study: StudyConfig, device: torch.device | str) -> bool:
    return str(device) == "cpu" and has_layers(study.model) and study.precision == "float32"
