"""The norm layers over K lanes; activations are (K, m, H, W, C) and (K, m, F), contiguous."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.triton import norms
from smallbatch.engines.lanes.weights import LaneWeights
from smallbatch.models.norms import GhostBatchNorm


class Norm:
    """Batch or ghost norm, a block's shortcut and the ReLU."""

    def __init__(self, lanes: LaneWeights, name: str, module: nn.BatchNorm2d) -> None:
        self.lanes, self.eps, self.momentum = lanes, module.eps, module.momentum or 0.0
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"
        self.statistics = f"{name}.running_mean", f"{name}.running_var"
        self.size = module.bn_batch_size if isinstance(module, GhostBatchNorm) else None

    def forward(self, x: Tensor, training: bool, shortcut: Shortcut | None = None) -> Tensor:
        """Relu(norm(x) + shortcut)."""
        views, (mean, var) = self.lanes.views, (self.lanes.statistics[n] for n in self.statistics)
        y, kept = norms.forward(
            x, views[self.weight], views[self.bias], (mean, var), self.size or x.shape[1],
            self.momentum, self.eps, shortcut, training,
        )  # fmt: skip
        if training:
            self.x, self.kept = x, kept
        return y

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        weight, gradients = self.lanes.views[self.weight], self.lanes.gradients
        size = self.size or g.shape[1]
        return norms.backward(
            g, self.x, weight, self.kept, size, gradients[self.weight], gradients[self.bias]
        )


class GroupNorm:
    """Group norm by torch: statistics of each example and channel group."""

    def __init__(self, lanes: LaneWeights, name: str, module: nn.GroupNorm) -> None:
        self.lanes, self.groups, self.eps = lanes, module.num_groups, module.eps
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def _grouped(self, x: Tensor) -> Tensor:
        """(K, m, …, C) → (K, m, pixels, groups, channels) in float32."""
        return x.float().flatten(2, -2).unflatten(-1, (self.groups, -1))

    def _affine(self, name: str) -> Tensor:
        return self.lanes.views[name][:, None, None].unflatten(-1, (self.groups, -1))

    def forward(self, x: Tensor, training: bool, shortcut: Shortcut | None = None) -> Tensor:
        """Relu(norm(x) + shortcut)."""
        shape, x = x.shape, x if x.dim() > 3 else x[:, :, None]
        var, mean = torch.var_mean(self._grouped(x), (2, 4), correction=0, keepdim=True)
        invstd = (var + self.eps).rsqrt()
        normal = (self._grouped(x) - mean) * invstd
        y = (normal * self._affine(self.weight) + self._affine(self.bias)).view(shape)
        if shortcut is not None:
            skip, s = shortcut.x, shortcut.stride
            y[..., : skip.shape[-1]].add_(skip[:, :, ::s, ::s])
        if training:
            self.normal, self.invstd = normal, invstd
        return y.relu_().to(x.dtype)

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        (shape, dtype), gradients = (g.shape, g.dtype), self.lanes.gradients
        g = self._grouped(g if g.dim() > 3 else g[:, :, None])
        gradients[self.weight].copy_((g * self.normal).sum((1, 2)).flatten(1))
        gradients[self.bias].copy_(g.sum((1, 2)).flatten(1))
        g = g * self._affine(self.weight)
        shared = g.mean((2, 4), keepdim=True)
        slope = (g * self.normal).mean((2, 4), keepdim=True)
        of_x = (g - shared - self.normal * slope) * self.invstd
        return of_x.reshape(shape).to(dtype)
