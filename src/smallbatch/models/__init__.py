"""Models by name: the paper's CIFAR ResNets and reduced AlexNet, other timm models, the user's own.

`import smallbatch.models.registry` registers the paper's models with timm, so that
`timm.create_model("smallbatch_resnet20", ...)` works.
"""

from smallbatch.models.build import build_model
from smallbatch.models.population import has_batch_norm, recompute_population_statistics

__all__ = ["build_model", "has_batch_norm", "recompute_population_statistics"]
