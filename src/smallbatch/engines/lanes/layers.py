"""Interfaces and containers of the layers over K lanes, for torch and for Triton.

A ReLU is not a layer of its own, so that the kernels of the layers around it can compute it. In the
forward pass, the layer before the ReLU sets its negative outputs to 0. In the backward pass, the
layer after the ReLU sets the gradient of its input ``x`` to 0 wherever x is 0.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Shortcut(NamedTuple):
    """The input (m, K·C, H, W) of a residual block, to be added to the block's output.

    Only every ``stride``-th pixel is added, to the first C output channels of each lane.
    """

    x: Tensor
    stride: int


class Layer(Protocol):
    """A layer of the network, for all lanes at once."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Output for the input ``x`` (m, K·…); in training mode keeps what `backward` needs."""
        ...

    def backward(self, g: Tensor) -> Tensor:
        """The input's gradient, from the output's; writes those of the parameters to the lanes."""
        ...


class Opening(Protocol):
    """A convolution that can begin a residual block."""

    stride: int

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """See `Layer`."""
        ...

    def backward(self, g: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """See `Layer`.

        Args:
            g: The gradient of the output.
            shortcut: The gradient of the block's output, which the shortcut passes to the input.
        """
        ...


class Joinable(Protocol):
    """A layer that can end a residual block."""

    def forward(self, x: Tensor, training: bool, shortcut: Shortcut | None = None) -> Tensor:
        """Relu(output + shortcut)."""
        ...

    def backward(self, g: Tensor) -> Tensor:
        """See `Layer`."""
        ...


def check_conv(name: str, module: nn.Conv2d) -> None:
    """Refuse a convolution that the lanes cannot compute.

    Raises:
        ValueError: The convolution has groups, dilation, an even size or no SAME padding.
    """
    size = module.kernel_size[0]
    plain = module.groups == 1 and module.kernel_size == (size, size) and size % 2
    if not plain or module.padding != (size // 2, size // 2) or module.dilation != (1, 1):
        raise ValueError(f"{name}: only plain convolutions with SAME padding can be stacked")


class Chain:
    """Layers one after another."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Apply the layers from first to last."""
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, g: Tensor) -> Tensor:
        """Propagate the gradient from the last layer to the first."""
        for layer in reversed(self.layers):
            g = layer.backward(g)
        return g


class Residual:
    """A block: relu(last(inner(first(x))) + shortcut(x)), its shortcut without parameters."""

    def __init__(self, first: Opening, inner: Chain, last: Joinable) -> None:
        self.first, self.inner, self.last = first, inner, last

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Add every ``stride``-th pixel of ``x`` to the first channels of the output."""
        y = self.inner.forward(self.first.forward(x, training), training)
        return self.last.forward(y, training, Shortcut(x, self.first.stride))

    def backward(self, g: Tensor) -> Tensor:
        """The input's gradient, the sum of those through the layers and through the shortcut."""
        return self.first.backward(self.inner.backward(self.last.backward(g)), g)
