"""Builds the network of K lanes from the structure of a plain model."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from smallbatch.engines.lanes.inputs import Shared
from smallbatch.engines.lanes.layers import Chain, Layer, Residual
from smallbatch.engines.lanes.weights import LaneWeights
from smallbatch.models.alexnet import AlexNet
from smallbatch.models.resnet import BasicBlock, ResNet


class Kit(Protocol):
    """Makes the layers of a network over K lanes. Its methods are called in the network's order."""

    def conv(self, name: str, module: nn.Conv2d, relu: bool) -> Any:
        """A convolution: a `Layer`, `Opening` and `Joinable`.

        Args:
            name: The name of the plain module.
            module: The plain module.
            relu: Whether a ReLU follows directly.
        """
        ...

    def first(self, conv: Any) -> Any:
        """The network's first convolution, made from what `conv` returned for it."""
        ...

    def linear(self, name: str, relu: bool) -> Layer:
        """An FC layer; ``relu``: whether a ReLU follows directly."""
        ...

    def norm(self, name: str, module: nn.Module) -> Any:
        """A normalisation and the ReLU that follows it: a `Layer` and `Joinable`."""
        ...

    def pool(self) -> Layer:
        """The max pool of the AlexNet."""
        ...

    def flatten(self) -> Layer:
        """Reshapes channels and pixels to features."""
        ...

    def head(self, name: str, module: nn.Linear) -> Layer:
        """Global average pool and FC layer; the input is the output of a ReLU."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """The last layer's output, reshaped to (m, K, classes)."""
        ...

    def of_logits(self, g: Tensor) -> Tensor:
        """A gradient (m, K, classes), reshaped to the form of the last layer's output."""
        ...

    def finish(self) -> None:
        """Called once, after all layers are made."""
        ...

    def end_backward(self) -> None:
        """Called at the end of each backward pass."""
        ...


def has_stacked_form(model: nn.Module) -> bool:
    """Whether a model can be built from layers over K lanes: true of the paper's CIFAR models."""
    return isinstance(model, ResNet | AlexNet)


class StackedNet:
    """The network of all lanes.

    Args:
        lanes: The weights.
        model: A plain model of the structure; its own weights are not used.
        kit: Makes the layers.

    Raises:
        TypeError: The model is neither a ResNet nor an AlexNet.
    """

    def __init__(self, lanes: LaneWeights, model: nn.Module, kit: Kit) -> None:
        self.lanes, self._kit = lanes, kit
        self._names = {id(module): name for name, module in model.named_modules()}
        if isinstance(model, ResNet):
            first, layers = self._resnet(model)
        elif isinstance(model, AlexNet):
            first, layers = self._alexnet(model)
        else:
            raise TypeError(f"{type(model).__name__} has no stacked form")
        self._first, self._chain = kit.first(first), Chain(*layers)
        kit.finish()

    def forward(self, shared: Shared, *, training: bool) -> Tensor:
        """Logits (m, K, classes) in the lanes' dtype."""
        logits = self._chain.forward(self._first.forward(shared, training), training)
        return self._kit.logits(logits).to(self.lanes.theta.dtype)

    def backward(self, g: Tensor) -> None:
        """Write the gradients of the parameters into the lanes; ``g`` is that of the logits."""
        self._first.backward(self._chain.backward(self._kit.of_logits(g)))
        self._kit.end_backward()

    def _resnet(self, model: ResNet) -> tuple[Any, list[Layer]]:
        first = self._conv(model.conv1, model.norm1)
        layers: list[Layer] = [*self._norm(model.norm1)]
        layers += [self._block(block) for block in model.blocks if isinstance(block, BasicBlock)]
        return first, [*layers, self._kit.head(self._names[id(model.fc)], _fc(model.fc))]

    def _block(self, block: BasicBlock) -> Residual:
        first, inner = self._conv(block.conv1, block.norm1), self._norm(block.norm1)
        ends = [self._conv(block.conv2, block.norm2), *self._norm(block.norm2)]
        return Residual(first, Chain(*inner, *ends[:-1]), ends[-1])

    def _alexnet(self, model: AlexNet) -> tuple[Any, list[Layer]]:
        convs: list[Any] = []
        layers: list[Layer] = []
        for layer in model.features.children():
            conv, norm = layer.conv, layer.norm
            if not isinstance(conv, nn.Conv2d):
                raise TypeError("the AlexNet's features are conv layers")
            norm = norm if isinstance(norm, nn.Module) else None
            convs.append(self._conv(conv, norm))
            layers += [*convs[1:][-1:], *self._norm(norm)]
            layers += [self._kit.pool()] if layer.pooled else []
        layers.append(self._kit.flatten())
        for hidden in (model.fc1, model.fc2):
            layers += [self._linear(hidden.fc, relu=hidden.norm is None), *self._norm(hidden.norm)]
        return convs[0], [*layers, self._linear(model.fc, relu=False)]

    def _conv(self, conv: nn.Conv2d, norm: nn.Module | None) -> Any:
        return self._kit.conv(self._names[id(conv)], conv, relu=norm is None)

    def _linear(self, module: nn.Module, relu: bool) -> Layer:
        return self._kit.linear(self._names[id(_fc(module))], relu)

    def _norm(self, module: nn.Module | None) -> list[Any]:
        return [] if module is None else [self._kit.norm(self._names[id(module)], module)]


def _fc(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise TypeError(f"found {type(module).__name__} where an FC layer is expected")
    return module
