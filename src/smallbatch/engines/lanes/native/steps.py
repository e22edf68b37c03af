"""A plain model as a chain of layers, each a product and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from smallbatch.models.alexnet import AlexNet
from smallbatch.models.resnet import BasicBlock, ResNet

NO_POOL, MAX_POOL, MEAN_POOL = range(3)


@dataclass
class Step:
    """The modules of one layer: product → norm → shortcut → ReLU → pool."""

    product: nn.Conv2d | nn.Linear
    norm: nn.Module | None = None
    skip: int | None = None  # number of the step whose output the shortcut adds
    stride: int = 1
    relu: bool = True
    pool: int = NO_POOL


def steps_of(model: nn.Module) -> list[Step]:
    """The layers of a ResNet or an AlexNet, in their order.

    Raises:
        TypeError: It is another model, or has modules that the kernels do not know.
    """
    if isinstance(model, ResNet):
        steps = [Step(model.conv1, model.norm1)]
        for block in model.blocks:
            if not isinstance(block, BasicBlock):
                raise TypeError(f"found {type(block).__name__} where a basic block is expected")
            steps.append(Step(block.conv1, block.norm1))
            steps.append(Step(block.conv2, block.norm2, skip=len(steps) - 2, stride=block.stride))
        steps[-1].pool = MEAN_POOL
        return [*steps, Step(_linear(model.fc), relu=False)]
    if isinstance(model, AlexNet):
        features: list[Any] = list(model.features.children())
        steps = [
            Step(layer.conv, layer.norm, pool=MAX_POOL if layer.pooled else NO_POOL)
            for layer in features
        ]
        steps += [Step(hidden.fc, hidden.norm) for hidden in (model.fc1, model.fc2)]
        return [*steps, Step(_linear(model.fc), relu=False)]
    raise TypeError(f"{type(model).__name__} has no native form")


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise TypeError(f"found {type(module).__name__} where an FC layer is expected")
    return module
