"""Models: the paper's CIFAR ResNets and reduced AlexNet, and any other timm model, by name.

Importing this package makes `timm.create_model("smallbatch_resnet20", ...)` work, in whichever
order timm is imported, yet imports neither torch nor timm itself: checking a configuration
(`validate_model`) must not cost the seconds that they take.
"""

import importlib
from typing import TYPE_CHECKING, Any

from smallbatch.models.hook import register_with_timm
from smallbatch.models.names import validate_model

if TYPE_CHECKING:
    from smallbatch.models.build import build_model
    from smallbatch.models.population import has_batch_norm, recompute_population_statistics

__all__ = ["build_model", "has_batch_norm", "recompute_population_statistics", "validate_model"]

_HOMES = {
    "build_model": "smallbatch.models.build",
    "has_batch_norm": "smallbatch.models.population",
    "recompute_population_statistics": "smallbatch.models.population",
}

register_with_timm()


def __getattr__(name: str) -> Any:
    """Import the functions that need torch when they are first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
