"""C++ kernels for K lanes on a CPU, and the code that compiles and calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.engines.kinds import has_layers
from smallbatch.engines.lanes.native.compile import available, failure, version_of
from smallbatch.protocol.optimiser import MOMENTS

__all__ = ["left_out", "takes", "version"]

if TYPE_CHECKING:
    import torch

    from smallbatch.config.study import StudyConfig


def takes(study: StudyConfig, device: torch.device | str) -> bool:
    """Whether a study's lanes are computed by these kernels.

    They are for the paper's models in float32, on a CPU, and need a C++ compiler.
    """
    return _are_for(study, device) and available(_has_moments(study))


def left_out(study: StudyConfig, device: torch.device | str) -> str | None:
    """Why these kernels do not compute lanes that they are for, in one line; else None."""
    return failure(_has_moments(study)) if _are_for(study, device) else None


def version(study: StudyConfig) -> str:
    """16 hex digits that identify the kernels of a study; others may round differently."""
    return version_of(_has_moments(study))


def _has_moments(study: StudyConfig) -> bool:
    return MOMENTS[study.optimizer] > 0


def _are_for(study: StudyConfig, device: torch.device | str) -> bool:
    return str(device) == "cpu" and has_layers(study.model) and study.precision == "float32"
