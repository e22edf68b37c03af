"""Layers over K lanes with backward passes written by hand.

The lanes lie side by side in the channels: activations are (m, K·C, H, W) or (m, K·F). A
convolution of all lanes is then a grouped convolution, batch norm is plain batch norm, and layers
without parameters need not know of the lanes. Autograd is not used: it would not write the
gradients to fixed places, as a captured step must, and at m = 2 it costs more than the arithmetic.

ReLUs are part of the layers around them; see :mod:`~engines.lanes.layers`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smallbatch.engines.lanes.inputs import Shared
from smallbatch.engines.lanes.layers import Chain, Shortcut, check_conv
from smallbatch.engines.lanes.torch.convs import Convs, by_lane
from smallbatch.engines.lanes.torch.norms import BatchNorm, GroupNorm, make_norm
from smallbatch.engines.lanes.weights import LaneWeights
from smallbatch.models.alexnet import same_max_pool


class Conv:
    """A convolution with SAME padding: (m, K·C, H, W) → (m, K·Cout, ⌈H / stride⌉, ⌈W / stride⌉).

    Args:
        lanes: The weights.
        name: The name of the plain module.
        module: The plain module.
        convs: The algorithm.
        relu: Whether a ReLU follows directly.
    """

    def __init__(
        self, lanes: LaneWeights, name: str, module: nn.Conv2d, convs: Convs, relu: bool
    ) -> None:
        check_conv(name, module)
        self.lanes, self.convs, self.relu, self.stride = lanes, convs, relu, module.stride[0]
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def parameters(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weights (K, Cout, C, size, size) and biases (K, Cout) in the activations' precision."""
        bias = self.lanes.views.get(self.bias)
        weight = self.lanes.views[self.weight].to(like.dtype)
        return weight, None if bias is None else bias.to(like.dtype)

    def keep_bias(self, g: Tensor) -> None:
        """Write the bias's gradient into the lanes."""
        if self.bias in self.lanes.views:
            out = self.lanes.gradients[self.bias]
            torch.sum(by_lane(g, len(self.lanes)), (0, 3, 4), dtype=out.dtype, out=out)

    def forward(self, x: Tensor, training: bool, shortcut: Shortcut | None = None) -> Tensor:
        """Convolve all lanes."""
        if training:
            self.x = x
        weight, bias = self.parameters(x)
        return self.convs.forward(x, weight, bias, self.stride, shortcut, self.relu)

    def backward(self, g: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Gradients of weight, bias and input; for ``shortcut`` see `Opening`."""
        weight, _ = self.parameters(g)
        self.keep_bias(g)
        self.convs.weight_gradient(g, self.x, self.lanes.gradients[self.weight], self.stride)
        return self.convs.input_gradient(g, weight, self.x, self.stride, shortcut)


class FirstConv:
    """The network's first convolution; lanes of one seed share their images."""

    def __init__(self, conv: Conv, dtype: torch.dtype) -> None:
        self.conv, self.dtype = conv, dtype

    def forward(self, shared: Shared, training: bool) -> Tensor:
        """Output (m, K·Cout, H, W) for the images."""
        shared = shared._replace(images=shared.images.to(self.dtype).contiguous())
        if training:
            self.shared = shared
        conv = self.conv
        weight, bias = conv.parameters(shared.images)
        return conv.convs.forward_shared(shared, weight, bias, conv.stride, conv.relu)

    def backward(self, g: Tensor) -> None:
        """Gradients of weight and bias; that of the images is not needed."""
        conv = self.conv
        conv.keep_bias(g)
        out = conv.lanes.gradients[conv.weight]
        conv.convs.weight_gradient_shared(g, self.shared, out, conv.stride)


class Linear:
    """FC layer: (m, K·in) → (m, K·out)."""

    def __init__(self, lanes: LaneWeights, name: str, relu: bool) -> None:
        self.lanes, self.relu = lanes, relu
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """X · weightᵀ + bias."""
        x = self._by_lane(x)
        if training:
            self.x = x
        weight, bias = self.lanes.views[self.weight], self.lanes.views.get(self.bias)
        out = torch.bmm(x, weight.to(x.dtype).transpose(1, 2))
        out = _side_by_side(out if bias is None else out.add_(bias.to(x.dtype)[:, None]))
        return out.relu_() if self.relu else out

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        g, gradients = self._by_lane(g), self.lanes.gradients
        gradients[self.weight].copy_(torch.bmm(g.transpose(1, 2), self.x))
        if self.bias in gradients:
            gradients[self.bias].copy_(g.sum(1, dtype=self.lanes.theta.dtype))
        of_x = torch.bmm(g, self.lanes.views[self.weight].to(g.dtype))
        return _side_by_side(torch.ops.aten.threshold_backward(of_x, self.x, 0))

    def _by_lane(self, x: Tensor) -> Tensor:
        """(m, K·F) → (K, m, F), a view."""
        return x.unflatten(1, (len(self.lanes), -1)).transpose(0, 1)


def _side_by_side(x: Tensor) -> Tensor:
    """(K, m, F) → (m, K·F)."""
    return x.transpose(0, 1).flatten(1)


class MaxPool:
    """The reduced AlexNet's 3×3/2 SAME max pool; the input is the output of a ReLU.

    The next layer sets the gradient to 0 where a maximum is 0, so nothing is left to do for that
    ReLU here.
    """

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
        """The gradient goes to the pixel that was the maximum."""
        return torch.ops.aten.max_pool2d_with_indices_backward(
            g.contiguous(), self.x, [3, 3], [2, 2], self.padding, [1, 1], True, self.index
        )


class Flatten:
    """(m, K·C, H, W) → (m, K·(C·H·W)), a view; features in the plain model's order."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Merge all dimensions but that of the examples."""
        if training:
            self.shape = x.shape
        return x.flatten(1)

    def backward(self, g: Tensor) -> Tensor:
        """Restore the input's shape."""
        return g.reshape(self.shape)


class GlobalMean:
    """Mean over the pixels of a ReLU's output: (m, K·C, H, W) → (m, K·C)."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Average over the pixels."""
        if training:
            self.x = x
        return x.mean((2, 3))

    def backward(self, g: Tensor) -> Tensor:
        """Every pixel above 0 gets an equal share; the others get 0, as their ReLU requires."""
        share = (g / self.x[0, 0].numel())[:, :, None, None]
        return torch.where(self.x > 0, share, torch.zeros_like(share))


class TorchLayers:
    """Makes the layers of a network; see :class:`~engines.lanes.network.Kit`.

    Args:
        lanes: The weights.
        convs: The algorithm of the convolutions.
        dtype: The dtype of the activations.
    """

    def __init__(self, lanes: LaneWeights, convs: Convs, dtype: torch.dtype) -> None:
        self.lanes, self.convs, self.dtype = lanes, convs, dtype

    def conv(self, name: str, module: nn.Conv2d, relu: bool) -> Conv:
        """A convolution; ``relu``: whether a ReLU follows directly."""
        return Conv(self.lanes, name, module, self.convs, relu)

    def first(self, conv: Conv) -> FirstConv:
        """The network's first convolution."""
        return FirstConv(conv, self.dtype)

    def linear(self, name: str, relu: bool) -> Linear:
        """An FC layer."""
        return Linear(self.lanes, name, relu)

    def norm(self, name: str, module: nn.Module) -> BatchNorm | GroupNorm:
        """A normalisation and the ReLU that follows it."""
        return make_norm(self.lanes, name, module)

    def pool(self) -> MaxPool:
        """The max pool of the AlexNet."""
        return MaxPool()

    def flatten(self) -> Flatten:
        """Reshapes channels and pixels to features."""
        return Flatten()

    def head(self, name: str, module: nn.Linear) -> Chain:  # noqa: ARG002 - of the protocol
        """Global average pool and FC layer."""
        return Chain(GlobalMean(), Linear(self.lanes, name, relu=False))

    def logits(self, x: Tensor) -> Tensor:
        """(m, K·classes) → (m, K, classes)."""
        return x.unflatten(1, (len(self.lanes), -1))

    def of_logits(self, g: Tensor) -> Tensor:
        """(m, K, classes) → (m, K·classes), in the activations' dtype."""
        return g.flatten(1).to(self.dtype)

    def finish(self) -> None:
        """Nothing is left to do."""

    def end_backward(self) -> None:
        """Nothing is left to do."""
