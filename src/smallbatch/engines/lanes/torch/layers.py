"""Layers over K lanes with backward passes written by hand.

The lanes lie side by side in the channels: activations are (m, K·C, H, W) or (m, K·F). A
convolution of all lanes is then a grouped one, batch norm is plain batch norm, and what has no
parameters does not see the lanes at all. No autograd: it would keep a captured step from writing
gradients where the update reads them, and at m = 2 costs more than the arithmetic.

No layer is a ReLU. The layer in front of one clips its output; whoever gets that output as its
input ``x`` returns its gradient masked by x > 0. So both can be part of a convolution's kernel.
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
        lanes: the weights.
        name: of the plain module.
        module: the plain module.
        convs: the algorithm.
        relu: whether a ReLU follows at once.
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
        """Leave the bias's gradient in the lanes."""
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
        """Gradients of weight, bias and input; ``shortcut`` is that of one which begins there."""
        weight, _ = self.parameters(g)
        self.keep_bias(g)
        self.convs.weight_gradient(g, self.x, self.lanes.gradients[self.weight], self.stride)
        return self.convs.input_gradient(g, weight, self.x, self.stride, shortcut)


class FirstConv:
    """The convolution that sees the images: plain, since lanes of one seed see the same ones."""

    def __init__(self, conv: Conv, dtype: torch.dtype) -> None:
        self.conv, self.dtype = conv, dtype

    def forward(self, shared: Shared, training: bool) -> Tensor:
        """Images → (m, K·Cout, H, W)."""
        shared = shared._replace(images=shared.images.to(self.dtype).contiguous())
        if training:
            self.shared = shared
        conv = self.conv
        weight, bias = conv.parameters(shared.images)
        return conv.convs.forward_shared(shared, weight, bias, conv.stride, conv.relu)

    def backward(self, g: Tensor) -> None:
        """Gradients of weight and bias; nobody wants the images'."""
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
    """The reduced AlexNet's 3×3/2 SAME max pool of what a ReLU has made.

    The mask of that ReLU is left to whoever gets the maxima: one is 0 where its pixel is.
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
        """The gradient goes to the pixel that won."""
        return torch.ops.aten.max_pool2d_with_indices_backward(
            g.contiguous(), self.x, [3, 3], [2, 2], self.padding, [1, 1], True, self.index
        )


class Flatten:
    """(m, K·C, H, W) → (m, K·(C·H·W)): a view, every lane's features in the plain model's order."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """All but the examples in one dimension."""
        if training:
            self.shape = x.shape
        return x.flatten(1)

    def backward(self, g: Tensor) -> Tensor:
        """Back to pixels."""
        return g.reshape(self.shape)


class GlobalMean:
    """Mean over the pixels of what a ReLU has made: (m, K·C, H, W) → (m, K·C)."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Global average pool."""
        if training:
            self.x = x
        return x.mean((2, 3))

    def backward(self, g: Tensor) -> Tensor:
        """Every pixel above 0 gets an equal share."""
        share = (g / self.x[0, 0].numel())[:, :, None, None]
        return torch.where(self.x > 0, share, torch.zeros_like(share))


class TorchLayers:
    """Makes the layers of a network.

    Args:
        lanes: the weights.
        convs: the convolutions' algorithm.
        dtype: of the activations.
    """

    def __init__(self, lanes: LaneWeights, convs: Convs, dtype: torch.dtype) -> None:
        self.lanes, self.convs, self.dtype = lanes, convs, dtype

    def conv(self, name: str, module: nn.Conv2d, relu: bool) -> Conv:
        """A convolution; ``relu``: one follows at once."""
        return Conv(self.lanes, name, module, self.convs, relu)

    def first(self, conv: Conv) -> FirstConv:
        """The convolution that sees the images."""
        return FirstConv(conv, self.dtype)

    def linear(self, name: str, relu: bool) -> Linear:
        """An FC layer."""
        return Linear(self.lanes, name, relu)

    def norm(self, name: str, module: nn.Module) -> BatchNorm | GroupNorm:
        """A normalisation and the ReLU that follows."""
        return make_norm(self.lanes, name, module)

    def pool(self) -> MaxPool:
        """The AlexNet's pool."""
        return MaxPool()

    def flatten(self) -> Flatten:
        """Pixels to features."""
        return Flatten()

    def head(self, name: str, module: nn.Linear) -> Chain:  # noqa: ARG002 - of the protocol
        """Global average pool and FC layer."""
        return Chain(GlobalMean(), Linear(self.lanes, name, relu=False))

    def logits(self, x: Tensor) -> Tensor:
        """(m, K·classes) → (m, K, classes)."""
        return x.unflatten(1, (len(self.lanes), -1))

    def of_logits(self, g: Tensor) -> Tensor:
        """And back."""
        return g.flatten(1).to(self.dtype)

    def finish(self) -> None:
        """All layers are made."""

    def end_backward(self) -> None:
        """Every gradient is there."""
