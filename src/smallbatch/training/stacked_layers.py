"""Layers over K lanes with backward passes written by hand.

The lanes lie side by side in the channels: activations are (m, K·C, H, W), channels last in memory
on a CPU, or (m, K·F). A convolution of all lanes is then one grouped convolution, batch norm is
plain batch norm, and what has no parameters does not see the lanes at all. No autograd: at m = 2
recording a graph costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from smallbatch.models.alexnet import same_max_pool
from smallbatch.training.lane_inputs import Shared
from smallbatch.training.lanes import Lanes


class Layer(Protocol):
    """A step of the network for all lanes at once."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Output for the input ``x`` (m, K·…); in training mode remembers what `backward` needs.

        A ReLU may overwrite its input.
        """
        ...

    def backward(self, g: Tensor) -> Tensor:
        """Gradient of the input from that of the output; leaves the parameters' in the lanes.

        Args:
            g: gradient of the summed loss with respect to the output; a ReLU may overwrite it.
        """
        ...


class Conv:
    """A convolution with SAME padding: (m, K·C, H, W) → (m, K·Cout, ⌈H / stride⌉, ⌈W / stride⌉)."""

    def __init__(self, lanes: Lanes, name: str, module: nn.Conv2d) -> None:
        kernel = module.kernel_size
        if module.padding != (kernel[0] // 2, kernel[1] // 2) or module.groups != 1:
            raise ValueError(f"{name}: only plain convolutions with SAME padding can be stacked")
        self.lanes = lanes
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"
        self.stride, self.padding = list(module.stride), [kernel[0] // 2, kernel[1] // 2]

    def parameters(self, lanes: slice) -> tuple[Tensor, Tensor | None]:
        """Weights (lanes·Cout, C, kh, kw) and biases (lanes·Cout,)."""
        bias = self.lanes.views.get(self.bias)
        weight = self.lanes.views[self.weight][lanes].flatten(0, 1)
        return weight, None if bias is None else bias[lanes].flatten()

    def convolve(self, x: Tensor, lanes: slice, groups: int) -> Tensor:
        """Convolve with the weights of some lanes."""
        weight, bias = self.parameters(lanes)
        return torch.conv2d(x, weight, bias, self.stride, self.padding, 1, groups)

    def gradients(
        self, g: Tensor, x: Tensor, lanes: slice, groups: int, needed: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the input (void unless ``needed``) and of the weights of some lanes."""
        weight, _ = self.parameters(lanes)
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(
            g, x, weight, None, self.stride, self.padding, [1, 1], False, [0, 0], groups,
            [needed, True, False],
        )  # fmt: skip
        return of_input, of_weight

    def keep(self, g: Tensor, of_weight: Tensor) -> None:
        """Leave the parameters' gradients in the lanes."""
        k = len(self.lanes)
        self.lanes.gradients[self.weight] = of_weight.unflatten(0, (k, -1))
        if self.bias in self.lanes.views:
            self.lanes.gradients[self.bias] = g.sum((0, 2, 3)).view(k, -1)

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """One grouped convolution."""
        if training:
            self.x = x
        return self.convolve(x, slice(None), len(self.lanes))

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        of_input, of_weight = self.gradients(g, self.x, slice(None), len(self.lanes), True)
        self.keep(g, of_weight)
        return of_input


class FirstConv:
    """The convolution that sees the images: plain, since lanes of one seed see the same ones."""

    def __init__(self, conv: Conv) -> None:
        self.conv = conv

    def forward(self, shared: Sequence[Shared], training: bool) -> Tensor:
        """Images → (m, K·Cout, H, W)."""
        if training:
            self.shared = shared
        parts = [self.conv.convolve(images, lanes, 1) for images, lanes in _placed(shared)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def backward(self, g: Tensor) -> None:
        """Gradients of weight and bias; nobody wants the images'."""
        k = len(self.conv.lanes)
        parts: list[Tensor] = []
        for images, lanes in _placed(self.shared):
            part = g.unflatten(1, (k, -1))[:, lanes].flatten(1, 2)
            part = part.contiguous(memory_format=torch.channels_last)
            parts.append(self.conv.gradients(part, images, lanes, 1, False)[1])
        self.conv.keep(g, torch.cat(parts))


def _placed(shared: Sequence[Shared]) -> list[tuple[Tensor, slice]]:
    """Images and which lanes see them."""
    ends = [sum(part.lanes for part in shared[: i + 1]) for i in range(len(shared))]
    return [
        (part.images, slice(end - part.lanes, end)) for part, end in zip(shared, ends, strict=True)
    ]


class Linear:
    """FC layer: (m, K·in) → (m, K·out)."""

    def __init__(self, lanes: Lanes, name: str) -> None:
        self.lanes = lanes
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """x · weightᵀ + bias."""
        x = self._by_lane(x)
        if training:
            self.x = x
        out = torch.bmm(x, self.lanes.views[self.weight].transpose(1, 2))
        bias = self.lanes.views.get(self.bias)
        return _side_by_side(out if bias is None else out.add_(bias[:, None]))

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        g = self._by_lane(g)
        self.lanes.gradients[self.weight] = torch.bmm(g.transpose(1, 2), self.x)
        if self.bias in self.lanes.views:
            self.lanes.gradients[self.bias] = g.sum(1)
        return _side_by_side(torch.bmm(g, self.lanes.views[self.weight]))

    def _by_lane(self, x: Tensor) -> Tensor:
        """(m, K·F) → (K, m, F), each lane in memory of its own."""
        return x.unflatten(1, (len(self.lanes), -1)).transpose(0, 1).contiguous()


def _side_by_side(x: Tensor) -> Tensor:
    """(K, m, F) → (m, K·F)."""
    return x.transpose(0, 1).flatten(1)


class Relu:
    """max(x, 0), in place."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Overwrites ``x``."""
        x.relu_()
        if training:
            self.y = x
        return x

    def backward(self, g: Tensor) -> Tensor:
        """The gradient where the output is above 0."""
        return torch.ops.aten.threshold_backward.grad_input(g, self.y, 0, grad_input=g)


class MaxPool:
    """The reduced AlexNet's 3×3/2 SAME max pool."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """(m, K·C, H, W) → (m, K·C, ⌈H/2⌉, ⌈W/2⌉)."""
        if not training:
            return same_max_pool(x)
        self.x, self.padding = x, [side % 2 for side in x.shape[2:]]
        pooled, self.index = torch.ops.aten.max_pool2d_with_indices(
            x, [3, 3], [2, 2], self.padding, [1, 1], True
        )
        return pooled

    def backward(self, g: Tensor) -> Tensor:
        """The gradient goes to the pixel that won."""
        return torch.ops.aten.max_pool2d_with_indices_backward(
            g, self.x, [3, 3], [2, 2], self.padding, [1, 1], True, self.index
        )


class Flatten:
    """(m, K·C, H, W) → (m, K·(C·H·W))."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Every lane's features next to each other, in the plain model's order."""
        if training:
            self.shape = x.shape
        return x.contiguous().flatten(1)

    def backward(self, g: Tensor) -> Tensor:
        """Back to channels last."""
        return g.reshape(self.shape).contiguous(memory_format=torch.channels_last)


class GlobalMean:
    """Mean over the pixels: (m, K·C, H, W) → (m, K·C)."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Global average pool."""
        if training:
            self.shape = x.shape
        return x.mean((2, 3))

    def backward(self, g: Tensor) -> Tensor:
        """Every pixel gets an equal share."""
        h, w = self.shape[2:]
        share = (g / (h * w))[:, :, None, None]
        return share.expand(self.shape).contiguous(memory_format=torch.channels_last)


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
    """Relu(branch(x) + shortcut(x)) with the parameter-free option-A shortcut."""

    def __init__(self, lanes: Lanes, branch: Chain, stride: int) -> None:
        self.lanes, self.branch, self.stride, self.relu = lanes, branch, stride, Relu()

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Every ``stride``-th pixel of ``x`` is added to the branch's first channels."""
        y = self.branch.forward(x, training)
        self._shortcut(y, x)[0].add_(self._shortcut(y, x)[1])
        if training:
            self.channels = x.shape[1]
        return self.relu.forward(y, training)

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of the branch and, added to its input's, of the shortcut."""
        g = self.relu.backward(g)
        # The branch's backward pass may not overwrite what the shortcut still needs: only a ReLU
        # overwrites, and none comes last in a branch.
        out = self.branch.backward(g)
        mine, theirs = self._shortcut(g, out)
        theirs.add_(mine)
        return out

    def _shortcut(self, y: Tensor, x: Tensor) -> tuple[Any, Any]:
        """The parts of output and input that the shortcut joins, in one shape."""
        if x.shape == y.shape:
            return y, x
        k, s = len(self.lanes), self.stride
        x = x.unflatten(1, (k, -1))
        return y.unflatten(1, (k, -1))[:, :, : x.shape[2]], x[..., ::s, ::s]
