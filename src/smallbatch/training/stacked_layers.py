"""Layers over K lanes with backward passes written by hand.

Activations are (K, C, H, W, m): the examples innermost, so that a kernel's taps are long runs of
memory at any image size, batch statistics are sums over contiguous rows, and what an FC layer sees,
(K, C·H·W, m), is the same memory. No autograd: at m = 2 recording a graph costs more than the
arithmetic.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from smallbatch.models.alexnet import same_max_pool
from smallbatch.training.lanes import Lanes


class Layer(Protocol):
    """A step of the network for all lanes at once."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Output for the input ``x`` (K, …, m); in training mode remembers what `backward` needs.

        A ReLU or normalisation may overwrite its input.
        """
        ...

    def backward(self, g: Tensor, needed: bool) -> Tensor:
        """Gradient of the input from that of the output; leaves the parameters' in the lanes.

        Args:
            g: gradient of the summed loss with respect to the output; a ReLU may overwrite it.
            needed: whether anybody wants the gradient of the input; if not, the result is void.
        """
        ...


class Linear:
    """FC layer: (K, in, m) → (K, out, m)."""

    def __init__(self, lanes: Lanes, name: str) -> None:
        self.lanes = lanes
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Weight · x + bias."""
        if training:
            self.x = x
        out = torch.bmm(self.lanes.views[self.weight], x)
        bias = self.lanes.views.get(self.bias)
        return out if bias is None else out.add_(bias[:, :, None])

    def backward(self, g: Tensor, needed: bool) -> Tensor:
        """Gradients of weight, bias and, if needed, input."""
        self.lanes.gradients[self.weight] = torch.bmm(g, self.x.transpose(1, 2))
        if self.bias in self.lanes.views:
            self.lanes.gradients[self.bias] = g.sum(2)
        return torch.bmm(self.lanes.views[self.weight].transpose(1, 2), g) if needed else g


class Relu:
    """max(x, 0), in place."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Overwrites ``x``."""
        x.relu_()
        if training:
            self.y = x
        return x

    def backward(self, g: Tensor, needed: bool) -> Tensor:  # noqa: ARG002
        """The gradient where the output is above 0."""
        return torch.ops.aten.threshold_backward.grad_input(g, self.y, 0, grad_input=g)


class MaxPool:
    """The reduced AlexNet's 3×3/2 SAME max pool."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """(K, C, H, W, m) → (K, C, ⌈H/2⌉, ⌈W/2⌉, m)."""
        # With the examples as channels this is the channels_last layout, so nothing is copied.
        images = x.flatten(0, 1).permute(0, 3, 1, 2)
        if not training:
            pooled = same_max_pool(images)
        else:
            self.images = images
            self.padding = [side % 2 for side in images.shape[2:]]
            pooled, self.index = torch.ops.aten.max_pool2d_with_indices(
                images, [3, 3], [2, 2], self.padding, [1, 1], True
            )
        return pooled.permute(0, 2, 3, 1).contiguous().unflatten(0, x.shape[:2])

    def backward(self, g: Tensor, needed: bool) -> Tensor:  # noqa: ARG002
        """The gradient goes to the pixel that won."""
        images = torch.ops.aten.max_pool2d_with_indices_backward(
            g.flatten(0, 1).permute(0, 3, 1, 2), self.images, [3, 3], [2, 2], self.padding,
            [1, 1], True, self.index,
        )  # fmt: skip
        return images.permute(0, 2, 3, 1).contiguous().unflatten(0, g.shape[:2])


class Flatten:
    """(K, C, H, W, m) → (K, C·H·W, m)."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """The same memory, read otherwise."""
        if training:
            self.shape = x.shape
        return x.flatten(1, 3)

    def backward(self, g: Tensor, needed: bool) -> Tensor:  # noqa: ARG002
        """The same memory again."""
        return g.reshape(self.shape)


class GlobalMean:
    """Mean over the pixels: (K, C, H, W, m) → (K, C, m)."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Global average pool."""
        if training:
            self.shape = x.shape
        return x.flatten(2, 3).mean(2)

    def backward(self, g: Tensor, needed: bool) -> Tensor:  # noqa: ARG002
        """Every pixel gets an equal share."""
        h, w = self.shape[2:4]
        return (g / (h * w))[:, :, None, None].expand(self.shape).contiguous()


class Chain:
    """Layers one after another."""

    def __init__(self, *layers: Layer) -> None:
        self.layers = layers

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """First to last."""
        for layer in self.layers:
            x = layer.forward(x, training)
        return x

    def backward(self, g: Tensor, needed: bool) -> Tensor:
        """Last to first."""
        for i in reversed(range(len(self.layers))):
            g = self.layers[i].backward(g, needed or i > 0)
        return g


class Residual:
    """Relu(branch(x) + shortcut(x)) with the parameter-free option-A shortcut."""

    def __init__(self, branch: Chain, stride: int) -> None:
        self.branch, self.stride, self.relu = branch, stride, Relu()

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Every ``stride``-th pixel of ``x`` is added to the branch's first channels."""
        s = self.stride
        y = self.branch.forward(x, training)
        y[:, : x.shape[1]].add_(x[:, :, ::s, ::s])
        if training:
            self.channels = x.shape[1]
        return self.relu.forward(y, training)

    def backward(self, g: Tensor, needed: bool) -> Tensor:
        """Gradients of the branch and, added to its input's, of the shortcut."""
        s = self.stride
        g = self.relu.backward(g, True)
        out = self.branch.backward(g, needed)
        if needed:
            out[:, :, ::s, ::s].add_(g[:, : self.channels])
        return out
