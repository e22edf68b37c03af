"""From the structure of a plain model to its layers over K lanes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smallbatch.models.alexnet import AlexNet
from smallbatch.models.norms import GhostBatchNorm
from smallbatch.models.resnet import BasicBlock, ResNet
from smallbatch.training.stacked.convs import Convs
from smallbatch.training.stacked.inputs import Shared
from smallbatch.training.stacked.lanes import Lanes
from smallbatch.training.stacked.layers import (
    Chain,
    Conv,
    FirstConv,
    Flatten,
    GlobalMean,
    Layer,
    Linear,
    MaxPool,
    Residual,
)
from smallbatch.training.stacked.norms import BatchNorm, FusedNorm, GhostNorm, GroupNorm


def has_stacked_form(model: nn.Module) -> bool:
    """Whether a model has layers over K lanes: the paper's CIFAR models do."""
    return isinstance(model, ResNet | AlexNet)


class StackedNet:
    """The network of all lanes.

    Args:
        lanes: the weights.
        model: the pattern of the structure; its own weights are not used.
        convs: the convolutions' algorithm.
        dtype: of the activations; the lanes' own unless given.
        fused: whether batch norms are done by Triton's kernels.
    """

    def __init__(
        self,
        lanes: Lanes,
        model: nn.Module,
        convs: Convs,
        dtype: torch.dtype | None = None,
        fused: bool = False,
    ) -> None:
        self.lanes, self._convs, self._fused = lanes, convs, fused
        self._dtype = dtype or lanes.theta.dtype
        self._names = {id(module): name for name, module in model.named_modules()}
        if isinstance(model, ResNet):
            first, layers = self._resnet(model)
        elif isinstance(model, AlexNet):
            first, layers = self._alexnet(model)
        else:
            raise TypeError(f"{type(model).__name__} has no stacked form")
        self._first, self._chain = FirstConv(first), Chain(*layers)

    def forward(self, shared: Shared, *, training: bool) -> Tensor:
        """Images, for as many lanes as there are → logits (m, K, classes) in the lanes' dtype."""
        shared = shared._replace(images=shared.images.to(self._dtype))
        logits = self._chain.forward(self._first.forward(shared, training), training)
        return logits.unflatten(1, (len(self.lanes), -1)).to(self.lanes.theta.dtype)

    def backward(self, g: Tensor) -> None:
        """Leave the gradients of the parameters in the lanes; ``g`` is that of the logits."""
        self._first.backward(self._chain.backward(g.flatten(1).to(self._dtype)))

    def _resnet(self, model: ResNet) -> tuple[Conv, list[Layer]]:
        blocks = [block for block in model.blocks if isinstance(block, BasicBlock)]
        layers = [
            *self._norm(model.norm1),
            *[self._block(block) for block in blocks],
            GlobalMean(),
            self._linear(model.fc, relu=False),
        ]
        return self._conv(model.conv1, model.norm1), layers

    def _block(self, block: BasicBlock) -> Residual:
        first, second = self._conv(block.conv1, block.norm1), self._conv(block.conv2, block.norm2)
        inner, ends = self._norm(block.norm1), [second, *self._norm(block.norm2)]
        return Residual(first, Chain(*inner, *ends[:-1]), ends[-1])

    def _alexnet(self, model: AlexNet) -> tuple[Conv, list[Layer]]:
        convs: list[Conv] = []
        layers: list[Layer] = []
        for layer in model.features.children():
            conv, norm = layer.conv, layer.norm
            if not isinstance(conv, nn.Conv2d):
                raise TypeError("the AlexNet's features are conv layers")
            norm = norm if isinstance(norm, nn.Module) else None
            convs.append(self._conv(conv, norm))
            layers += [*convs[1:][-1:], *self._norm(norm), *([MaxPool()] if layer.pooled else [])]
        layers.append(Flatten())
        for hidden in (model.fc1, model.fc2):
            layers += [self._linear(hidden.fc, relu=hidden.norm is None), *self._norm(hidden.norm)]
        return convs[0], [*layers, self._linear(model.fc, relu=False)]

    def _conv(self, conv: nn.Conv2d, norm: nn.Module | None) -> Conv:
        return Conv(self.lanes, self._names[id(conv)], conv, self._convs, relu=norm is None)

    def _linear(self, module: nn.Module, relu: bool) -> Layer:
        if not isinstance(module, nn.Linear):
            raise TypeError(f"found {type(module).__name__} where an FC layer is expected")
        return Linear(self.lanes, self._names[id(module)], relu)

    def _norm(self, module: nn.Module | None) -> list[BatchNorm | GroupNorm]:
        if module is None:
            return []
        name = self._names[id(module)]
        if self._fused and isinstance(module, nn.BatchNorm2d):
            return [FusedNorm(self.lanes, name, module)]
        if isinstance(module, GhostBatchNorm):
            return [GhostNorm(self.lanes, name, module)]
        if isinstance(module, nn.BatchNorm2d):
            return [BatchNorm(self.lanes, name, module)]
        if isinstance(module, nn.GroupNorm):
            return [GroupNorm(self.lanes, name, module)]
        raise TypeError(f"{type(module).__name__} has no stacked form")
