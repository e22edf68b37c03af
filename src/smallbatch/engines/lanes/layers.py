"""What the layers over K lanes have in common, whatever computes them.

No layer is a ReLU. The layer in front of one clips its output; whoever gets that output as its
input ``x`` returns its gradient masked by x > 0. So both can be part of a convolution's kernel.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Shortcut(NamedTuple):
    """A block's input (m, K·C, H, W): every ``stride``-th pixel joins the first channels."""

    x: Tensor
    stride: int


class Layer(Protocol):
    """A step of the network for all lanes at once."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Output for the input ``x`` (m, K·…); in training mode remembers what `backward` needs."""
        ...

    def backward(self, g: Tensor) -> Tensor:
        """Gradient of the input from that of the output; leaves the parameters' in the lanes."""
        ...


class Opening(Protocol):
    """A convolution that can begin a residual block."""

    stride: int

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """As a layer's."""
        ...

    def backward(self, g: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """As a layer's, with the gradient of the shortcut that begins at the input."""
        ...


class Joinable(Protocol):
    """A layer that can end a residual block."""

    def forward(self, x: Tensor, training: bool, shortcut: Shortcut | None = None) -> Tensor:
        """Output plus the shortcut, clipped at 0."""
        ...

    def backward(self, g: Tensor) -> Tensor:
        """As a layer's."""
        ...


def check_conv(name: str, module: nn.Conv2d) -> None:
    """Refuse what is no plain convolution of odd size with SAME padding.

    Raises:
        ValueError: it is not.
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
        """First to last."""
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, g: Tensor) -> Tensor:
        """Last to first."""
        for layer in reversed(self.layers):
            g = layer.backward(g)
        return g


class Residual:
    """Relu(last(inner(first(x))) + shortcut(x)) with the parameter-free option-A shortcut."""

    def __init__(self, first: Opening, inner: Chain, last: Joinable) -> None:
        self.first, self.inner, self.last = first, inner, last

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Every ``stride``-th pixel of ``x`` is added to the branch's first channels."""
        y = self.inner.forward(self.first.forward(x, training), training)
        return self.last.forward(y, training, Shortcut(x, self.first.stride))

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of the branch and, added to its input's, of the shortcut."""
        return self.first.backward(self.inner.backward(self.last.backward(g)), g)
