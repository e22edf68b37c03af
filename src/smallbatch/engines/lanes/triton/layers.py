"""Layers over K lanes by Triton kernels, with backward passes written by hand.

Activations are (K, m, H, W, C) and (K, m, F), contiguous. ReLUs are part of the layers around them;
see :mod:`~engines.lanes.layers`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from smallbatch.engines.lanes.inputs import Shared
from smallbatch.engines.lanes.layers import Shortcut, check_conv
from smallbatch.engines.lanes.triton import convs, heads, pool
from smallbatch.engines.lanes.triton.convs import Dot
from smallbatch.engines.lanes.triton.norm_layers import GroupNorm, Norm
from smallbatch.engines.lanes.weights import LaneWeights

# With more pixels than this in a lane's batch, a kernel fills the GPU and none runs beside it.
BESIDE = 2**14


class Side:
    """A second stream of the GPU, on which the gradients of weights are computed.

    Nothing needs them before the update, so they may run beside the rest of the backward pass.

    Args:
        used: Whether there is a second stream; otherwise one stream does everything in turn.
    """

    def __init__(self, used: bool) -> None:
        self._stream = torch.cuda.Stream() if used else None
        self._held: list[Tensor] = []

    @contextmanager
    def beside(self, g: Tensor) -> Generator[None, None, None]:
        """Launch the kernels of the `with` block on the second stream, beside others until `join`.

        ``g`` is kept until then; otherwise its memory could be reused while it is still read.
        """
        if self._stream is None:
            yield
            return
        self._held.append(g)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Make kernels that are launched from now on wait for those of the second stream."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._held.clear()


class TritonLayers:
    """Makes the layers of a network; see :class:`~engines.lanes.network.Kit`.

    Args:
        lanes: The weights, packed.
        batch_size: m.
        side: Height and width of the images.
        dot: How float32 is multiplied.
        dtype: The dtype of the activations.
    """

    def __init__(
        self,
        lanes: LaneWeights,
        batch_size: int,
        side: tuple[int, int],
        dot: Dot,
        dtype: torch.dtype,
    ) -> None:
        if batch_size * side[0] * side[1] * 16 >= 2**31:
            raise ValueError(f"{batch_size} images of {side[0]}x{side[1]} pixels: offsets overflow")
        self.lanes, self.m, self.side, self.dtype = lanes, batch_size, side, dtype
        self.dot: Dot = dot
        self._parts: dict[str, int] = {}
        few = batch_size * side[0] * side[1] <= BESIDE
        self._side = Side(lanes.theta.is_cuda and few)

    def conv(self, name: str, module: nn.Conv2d, relu: bool) -> Conv:
        """A convolution; ``relu``: whether a ReLU follows directly."""
        check_conv(name, module)
        conv = Conv(self.lanes, name, module.stride[0], relu, self.dot, self._side)
        height, width = (-(-side // conv.stride) for side in self.side)
        self.side = height, width
        for parameter in (conv.weight, conv.bias):
            channels = max(16, module.in_channels)
            self._parts[parameter] = convs.parts_of(self.m * height * width, channels)
        return conv

    def first(self, conv: Conv) -> FirstConv:
        """The network's first convolution."""
        return FirstConv(conv, self.dtype)

    def linear(self, name: str, relu: bool) -> Linear:
        """An FC layer."""
        return Linear(self.lanes, name, relu)

    def norm(self, name: str, module: nn.Module) -> Norm | GroupNorm:
        """A normalisation and the ReLU that follows it."""
        if isinstance(module, nn.GroupNorm):
            return GroupNorm(self.lanes, name, module)
        if isinstance(module, nn.BatchNorm2d):
            return Norm(self.lanes, name, module)
        raise TypeError(f"{type(module).__name__} has no stacked form")

    def pool(self) -> MaxPool:
        """The max pool of the AlexNet."""
        height, width = (-(-side // 2) for side in self.side)
        self.side = height, width
        return MaxPool()

    def flatten(self) -> Flatten:
        """Reshapes channels and pixels to features."""
        return Flatten()

    def head(self, name: str, module: nn.Linear) -> Head:
        """Global average pool and FC layer."""
        head = Head(self.lanes, name, self._side)
        for parameter in (head.weight, head.bias):
            self._parts[parameter] = convs.parts_of(self.m, module.in_features)
        return head

    def logits(self, x: Tensor) -> Tensor:
        """(K, m, classes) → (m, K, classes)."""
        return x.transpose(0, 1)

    def of_logits(self, g: Tensor) -> Tensor:
        """(m, K, classes) → (K, m, classes)."""
        return g.transpose(0, 1).to(self.dtype).contiguous()

    def finish(self) -> None:
        """Make room in the lanes for the parts of every gradient."""
        self.lanes.split({n: p for n, p in self._parts.items() if n in self.lanes.views})

    def end_backward(self) -> None:
        """Wait for the second stream, which computes gradients of weights."""
        self._side.join()


class Conv:
    """A convolution with SAME padding: (K, m, H, W, C) → (K, m, ⌈H/stride⌉, ⌈W/stride⌉, O)."""

    def __init__(
        self, lanes: LaneWeights, name: str, stride: int, relu: bool, dot: Dot, side: Side
    ) -> None:
        self.lanes, self.stride, self.relu, self.side = lanes, stride, relu, side
        self.dot: Dot = dot
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def parameters(self) -> tuple[Tensor, Tensor | None]:
        """Weights (K, size, size, C, O) and biases (K, O)."""
        views = self.lanes.views
        return views[self.weight].permute(0, 3, 4, 2, 1), views.get(self.bias)

    def gradients(self) -> tuple[Tensor, Tensor | None]:
        """The memory for their gradients: (parts, K, size, size, C, O) and (parts, K, O)."""
        of_weight, of_bias = self.lanes.parts(self.weight), None
        if self.bias in self.lanes.views:
            of_bias = self.lanes.parts(self.bias)
        return of_weight.permute(0, 1, 4, 5, 3, 2), of_bias

    def forward(self, x: Tensor, training: bool, shortcut: Shortcut | None = None) -> Tensor:
        """Convolve all lanes."""
        if training:
            self.x = x
        weight, bias = self.parameters()
        return convs.forward(x, weight, bias, self.stride, shortcut, self.relu, self.dot)

    def backward(self, g: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Gradients of weight, bias and input; for ``shortcut`` see `Opening`."""
        with self.side.beside(g):
            convs.weight_gradient(g, self.x, *self.gradients(), self.stride, self.dot)
        weight, _ = self.parameters()
        return convs.input_gradient(g, weight, self.x, self.stride, shortcut, self.dot)


class FirstConv:
    """The network's first convolution; lanes of one seed share their images."""

    def __init__(self, conv: Conv, dtype: torch.dtype) -> None:
        if conv.stride != 1:
            raise ValueError(f"{conv.weight}: the first convolution has stride 1")
        self.conv, self.dtype = conv, dtype

    def forward(self, shared: Shared, training: bool) -> Tensor:
        """Output (K, m, H, W, O) for the images."""
        images = shared.images.permute(0, 1, 3, 4, 2).to(self.dtype).contiguous()
        if training:
            self.images, self.source = images, shared.source
        conv = self.conv
        return convs.forward_images(images, shared.source, *conv.parameters(), conv.relu, conv.dot)

    def backward(self, g: Tensor) -> None:
        """Gradients of weight and bias; that of the images is not needed."""
        of_weight, of_bias = self.conv.gradients()
        convs.weight_gradient_images(g, self.images, self.source, of_weight, of_bias, self.conv.dot)


class Linear:
    """FC layer: (K, m, in) → (K, m, out)."""

    def __init__(self, lanes: LaneWeights, name: str, relu: bool) -> None:
        self.lanes, self.relu = lanes, relu
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """X · weightᵀ + bias."""
        if training:
            self.x = x
        weight, bias = self.lanes.views[self.weight], self.lanes.views.get(self.bias)
        weight = weight.to(x.dtype).transpose(1, 2)
        if bias is None:
            y = torch.bmm(x, weight)
        else:
            y = torch.baddbmm(bias.to(x.dtype)[:, None], x, weight)
        return y.relu_() if self.relu else y

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        gradients = self.lanes.gradients
        if g.dtype == self.lanes.theta.dtype:
            torch.bmm(g.transpose(1, 2), self.x, out=gradients[self.weight])
        else:
            gradients[self.weight].copy_(torch.bmm(g.transpose(1, 2), self.x))
        if self.bias in gradients:
            torch.sum(g, 1, dtype=self.lanes.theta.dtype, out=gradients[self.bias])
        of_x = torch.bmm(g, self.lanes.views[self.weight].to(g.dtype))
        return torch.ops.aten.threshold_backward(of_x, self.x, 0)


class MaxPool:
    """The reduced AlexNet's 3×3/2 SAME max pool; the input is the output of a ReLU.

    The next layer sets the gradient to 0 where a maximum is 0, so nothing is left to do for that
    ReLU here.
    """

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """(K, m, H, W, C) → (K, m, ⌈H/2⌉, ⌈W/2⌉, C)."""
        y, won = pool.forward(x)
        if training:
            self.won, self.shape = won, x.shape
        return y

    def backward(self, g: Tensor) -> Tensor:
        """The gradient goes to the pixel that was the maximum."""
        return pool.backward(g, self.won, self.shape)


class Flatten:
    """(K, m, H, W, C) → (K, m, C·H·W); features in the plain model's order."""

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Move the channels first, then merge channels and pixels."""
        if training:
            self.shape = x.shape
        return x.permute(0, 1, 4, 2, 3).flatten(2)

    def backward(self, g: Tensor) -> Tensor:
        """Restore the input's shape."""
        k, m, h, w, c = self.shape
        return g.view(k, m, c, h, w).permute(0, 1, 3, 4, 2).contiguous()


class Head:
    """Global average pool of a ReLU's output, and FC: (K, m, H, W, C) → (K, m, classes)."""

    def __init__(self, lanes: LaneWeights, name: str, side: Side) -> None:
        self.lanes, self.side = lanes, side
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Mean over pixels · weightᵀ + bias, in float32."""
        views = self.lanes.views
        features, y = heads.forward(x, views[self.weight], views.get(self.bias))
        if training:
            self.x, self.features = x, features
        return y

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        with self.side.beside(g):
            of_bias = self.lanes.parts(self.bias) if self.bias in self.lanes.views else None
            of_weight = self.lanes.parts(self.weight)
            heads.weight_gradient(g, self.features, of_weight, of_bias)
        return heads.backward(g, self.lanes.views[self.weight], self.x)
