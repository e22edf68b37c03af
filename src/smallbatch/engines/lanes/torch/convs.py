"""Convolutions of K lanes, whose channels lie side by side, by several algorithms.

Activations are (m, K·C, H, W), weights (K, Cout, C, size, size); all convolutions have SAME
padding. A convolution's function also does what follows it, so that an algorithm can do all of it
in one kernel. Forward, it adds the bias and a shortcut and applies the ReLU. Backward, it adds the
shortcut's gradient and sets the input's gradient to 0 where the ReLU before it gave 0.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from smallbatch.engines.lanes.inputs import Shared
from smallbatch.engines.lanes.layers import Shortcut


class Convs(Protocol):
    """An algorithm for the convolutions.

    ``weight`` may have any stride between lanes.
    """

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        shortcut: Shortcut | None = None,
        relu: bool = False,
    ) -> Tensor:
        """(m, K·C, H, W) → relu(conv + bias + shortcut), (m, K·Cout, ⌈H/stride⌉, ⌈W/stride⌉)."""
        ...

    def input_gradient(
        self, g: Tensor, weight: Tensor, x: Tensor, stride: int, shortcut: Tensor | None = None
    ) -> Tensor:
        """Gradient of ``x`` where x > 0, and 0 elsewhere; ``x`` is the output of a ReLU.

        Args:
            g: The gradient of the output.
            weight: As in the forward pass.
            x: The input.
            stride: The stride of the convolution.
            shortcut: The gradient of the output of the block whose shortcut begins at ``x``, shaped
                as ``g``; None without a shortcut.
        """
        ...

    def weight_gradient(self, g: Tensor, x: Tensor, out: Tensor, stride: int) -> None:
        """Write the gradient of the weights into ``out`` (K, Cout, C, size, size)."""
        ...

    def forward_shared(
        self, shared: Shared, weight: Tensor, bias: Tensor | None, stride: int, relu: bool
    ) -> Tensor:
        """Like `forward`, for images that several lanes share."""
        ...

    def weight_gradient_shared(self, g: Tensor, shared: Shared, out: Tensor, stride: int) -> None:
        """Like `weight_gradient`, for images that several lanes share."""
        ...


def by_lane(x: Tensor, k: int) -> Tensor:
    """(m, K·C, …) → (m, K, C, …), a view."""
    return x.unflatten(1, (k, -1))


def join_shortcut(y: Tensor, shortcut: Shortcut, k: int) -> None:
    """Add a shortcut to a block's output, in place."""
    x, s = by_lane(shortcut.x, k), shortcut.stride
    by_lane(y, k)[:, :, : x.shape[2]].add_(x[..., ::s, ::s])


def finish(y: Tensor, k: int, shortcut: Shortcut | None, relu: bool) -> Tensor:
    """Add the shortcut and apply the ReLU, in place."""
    if shortcut is not None:
        join_shortcut(y, shortcut, k)
    return y.relu_() if relu else y


def finish_gradient(
    of_x: Tensor, x: Tensor, k: int, stride: int, shortcut: Tensor | None
) -> Tensor:
    """Add the shortcut's gradient and set the result to 0 where x = 0, in place."""
    if shortcut is not None:
        mine = by_lane(of_x, k)
        mine[..., ::stride, ::stride].add_(by_lane(shortcut, k)[:, :, : mine.shape[2]])
    return torch.ops.aten.threshold_backward.grad_input(of_x, x, 0, grad_input=of_x)


def _backward(
    g: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int, wanted: list[bool]
) -> Any:
    """Torch's gradients of input, weight and bias; ``wanted`` selects which are computed."""
    padding, flat = weight.shape[-1] // 2, weight.flatten(0, 1).to(g.dtype)
    return torch.ops.aten.convolution_backward(
        g, x, flat, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups, wanted
    )


class _PlainFirst:
    """Convolves each seed's images once; the output channels are those of all its lanes."""

    def forward_shared(
        self, shared: Shared, weight: Tensor, bias: Tensor | None, stride: int, relu: bool
    ) -> Tensor:
        """See `Convs`."""
        parts: list[Tensor] = []
        for images, lanes in shared.placed():
            own = None if bias is None else bias[lanes].flatten()
            flat = weight[lanes].flatten(0, 1)
            parts.append(F.conv2d(images, flat, own, stride, weight.shape[-1] // 2))
        y = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return y.relu_() if relu else y

    def weight_gradient_shared(self, g: Tensor, shared: Shared, out: Tensor, stride: int) -> None:
        """See `Convs`."""
        g = by_lane(g, len(out))
        for images, lanes in shared.placed():
            part, own = g[:, lanes].flatten(1, 2), out[lanes]
            _, of_weight, _ = _backward(part, images, own, stride, 1, [False, True, False])
            own.copy_(of_weight.view(own.shape))


class Grouped(_PlainFirst):
    """One grouped convolution by torch, on a GPU by cuDNN."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        shortcut: Shortcut | None = None,
        relu: bool = False,
    ) -> Tensor:
        """See `Convs`."""
        k = len(weight)
        flat = None if bias is None else bias.flatten()
        y = F.conv2d(x, weight.flatten(0, 1), flat, stride, weight.shape[-1] // 2, 1, k)
        return finish(y, k, shortcut, relu)

    def input_gradient(
        self, g: Tensor, weight: Tensor, x: Tensor, stride: int, shortcut: Tensor | None = None
    ) -> Tensor:
        """See `Convs`."""
        of_x, _, _ = _backward(g, x, weight, stride, len(weight), [True, False, False])
        return finish_gradient(of_x, x, len(weight), stride, shortcut)

    def weight_gradient(self, g: Tensor, x: Tensor, out: Tensor, stride: int) -> None:
        """See `Convs`."""
        _, of_weight, _ = _backward(g, x, out, stride, len(out), [False, True, False])
        out.copy_(of_weight.view(out.shape))


class Unrolled(_PlainFirst):
    """A matrix product for each lane, on the unrolled input (im2col)."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        shortcut: Shortcut | None = None,
        relu: bool = False,
    ) -> Tensor:
        """See `Convs`."""
        k, out = weight.shape[:2]
        columns = _unroll(x, k, weight.shape[-1], stride)
        y = weight.flatten(2) @ columns
        if bias is not None:
            y += bias[:, :, None]
        h, w = (-(-side // stride) for side in x.shape[2:])
        y = y.view(k, out, len(x), h, w).movedim(2, 0).flatten(1, 2)
        return finish(y, k, shortcut, relu)

    def input_gradient(
        self, g: Tensor, weight: Tensor, x: Tensor, stride: int, shortcut: Tensor | None = None
    ) -> Tensor:
        """See `Convs`."""
        k, _, c, size, _ = weight.shape
        m, (h, w) = len(x), x.shape[2:]
        columns = weight.flatten(2).transpose(1, 2) @ _rows(g, k)
        columns = columns.view(k * c * size * size, m, -1).transpose(0, 1)
        of_x = F.fold(columns, (h, w), size, padding=size // 2, stride=stride)
        return finish_gradient(of_x, x, k, stride, shortcut)

    def weight_gradient(self, g: Tensor, x: Tensor, out: Tensor, stride: int) -> None:
        """See `Convs`."""
        k, size = len(out), out.shape[-1]
        product = _rows(g, k) @ _unroll(x, k, size, stride).transpose(1, 2)
        out.copy_(product.view(out.shape))


def _rows(g: Tensor, k: int) -> Tensor:
    """(m, K·C, H, W) → (K, C, m·H·W)."""
    return by_lane(g, k).movedim(0, 2).flatten(2)


def _unroll(x: Tensor, k: int, size: int, stride: int) -> Tensor:
    """(m, K·C, H, W) → (K, C·size·size, m·H'·W')."""
    windows = F.pad(x, [size // 2] * 4).unfold(2, size, stride).unfold(3, size, stride)
    m, kc, h, w = windows.shape[:4]
    columns = windows.permute(1, 4, 5, 0, 2, 3).reshape(kc * size * size, m * h * w)
    return columns.view(k, -1, m * h * w)
