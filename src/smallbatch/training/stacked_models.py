"""From the structure of a plain model to its layers over K lanes."""

from __future__ import annotations

from torch import Tensor, nn

from smallbatch.models.alexnet import AlexNet
from smallbatch.models.norms import GhostBatchNorm
from smallbatch.models.resnet import BasicBlock, ResNet
from smallbatch.training.lanes import Lanes
from smallbatch.training.stacked_conv import Conv
from smallbatch.training.stacked_layers import (
    Chain,
    Flatten,
    GlobalMean,
    Layer,
    Linear,
    MaxPool,
    Relu,
    Residual,
)
from smallbatch.training.stacked_norms import BatchNorm, GhostNorm, GroupNorm
from smallbatch.training.unroll import Unroller


class StackedNet:
    """The network of all lanes."""

    def __init__(self, lanes: Lanes, model: nn.Module) -> None:
        self.lanes = lanes
        self._unroller = Unroller(lanes.theta.device)
        self._names = {id(module): name for name, module in model.named_modules()}
        if isinstance(model, ResNet):
            self._chain = self._resnet(model)
        elif isinstance(model, AlexNet):
            self._chain = self._alexnet(model)
        else:
            raise TypeError(f"{type(model).__name__} has no stacked form")

    def forward(self, x: Tensor, *, training: bool) -> Tensor:
        """(K, C, H, W, m) → logits (K, classes, m)."""
        return self._chain.forward(x, training)

    def backward(self, g: Tensor) -> None:
        """Leave the gradients of the parameters in the lanes; ``g`` is that of the logits."""
        self._chain.backward(g, needed=False)

    def clear(self) -> None:
        """Give back buffers whose shapes are those of a number of lanes that is past."""
        self._unroller.clear()

    def _resnet(self, model: ResNet) -> Chain:
        blocks = [block for block in model.blocks if isinstance(block, BasicBlock)]
        return Chain(
            *self._conv(model.conv1, model.norm1),
            Relu(),
            *[self._block(block) for block in blocks],
            GlobalMean(),
            self._linear(model.fc),
        )

    def _block(self, block: BasicBlock) -> Residual:
        branch = Chain(
            *self._conv(block.conv1, block.norm1), Relu(), *self._conv(block.conv2, block.norm2)
        )
        return Residual(branch, block.stride)

    def _alexnet(self, model: AlexNet) -> Chain:
        layers: list[Layer] = []
        for layer in model.features.children():
            conv, norm, pooled = layer.conv, layer.norm, layer.pooled
            if not isinstance(conv, nn.Conv2d):
                raise TypeError("the AlexNet's features are conv layers")
            layers += [*self._conv(conv, norm if isinstance(norm, nn.Module) else None), Relu()]
            layers += [MaxPool()] if pooled else []
        layers.append(Flatten())
        for hidden in (model.fc1, model.fc2):
            layers += [self._linear(hidden.fc), *self._norm(hidden.norm), Relu()]
        return Chain(*layers, self._linear(model.fc))

    def _conv(self, conv: nn.Conv2d, norm: nn.Module | None) -> list[Layer]:
        name = self._names[id(conv)]
        return [Conv(self.lanes, self._unroller, name, conv), *self._norm(norm)]

    def _linear(self, module: nn.Module) -> Layer:
        if not isinstance(module, nn.Linear):
            raise TypeError(f"found {type(module).__name__} where an FC layer is expected")
        return Linear(self.lanes, self._names[id(module)])

    def _norm(self, module: nn.Module | None) -> list[Layer]:
        if module is None:
            return []
        name = self._names[id(module)]
        if isinstance(module, GhostBatchNorm):
            return [GhostNorm(self.lanes, name, module)]
        if isinstance(module, nn.BatchNorm2d):
            return [BatchNorm(self.lanes, name, module)]
        if isinstance(module, nn.GroupNorm):
            return [GroupNorm(self.lanes, name, module)]
        raise TypeError(f"{type(module).__name__} has no stacked form")
