"""Registers the models with timm, when it is imported.

No other module imports it: importing timm takes longer than training a small column.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from smallbatch.models.paper import PAPER_MODELS

_CIFAR: dict[str, Any] = {"input_size": (3, 32, 32), "num_classes": 10, "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        "smallbatch_resnet8": {**_CIFAR, "first_conv": "conv1", "classifier": "fc"},
        "smallbatch_resnet20": {**_CIFAR, "first_conv": "conv1", "classifier": "fc"},
        "smallbatch_resnet32": {**_CIFAR, "first_conv": "conv1", "classifier": "fc"},
        "smallbatch_alexnet": {
            **_CIFAR,
            "first_conv": "features.0.conv",
            "classifier": "fc",
            "fixed_input_size": True,
        },
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Build a model as timm does, or say that there are no weights to load."""
    if pretrained:
        raise ValueError(f"{variant} has no pretrained weights; use pretrained=False")
    if kwargs.get("features_only"):
        raise ValueError(f"{variant} has no features_only variant; use forward_features")
    return build_model_with_cfg(PAPER_MODELS[variant], variant, pretrained, **kwargs)


@register_model
def smallbatch_resnet8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-8; arguments of `ResNet`, batch norm by default."""
    return _create("smallbatch_resnet8", pretrained, **kwargs)


@register_model
def smallbatch_resnet20(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-20; arguments of `ResNet`, batch norm by default."""
    return _create("smallbatch_resnet20", pretrained, **kwargs)


@register_model
def smallbatch_resnet32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """CIFAR ResNet-32; arguments of `ResNet`, batch norm by default."""
    return _create("smallbatch_resnet32", pretrained, **kwargs)


@register_model
def smallbatch_alexnet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Reduced AlexNet; arguments of `AlexNet`, no normalisation by default."""
    return _create("smallbatch_alexnet", pretrained, **kwargs)
