"""Batch, ghost and group normalisation over K lanes: torch's own, with K·C channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smallbatch.models.norms import GhostBatchNorm
from smallbatch.training.lanes import Lanes

_BACKWARD = torch.ops.aten.native_batch_norm_backward


class _Norm:
    """A normalisation with scale and shift."""

    def __init__(self, lanes: Lanes, name: str) -> None:
        self.lanes = lanes
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (K·C,) each."""
        views = self.lanes.views
        return views[self.weight].flatten(), views[self.bias].flatten()

    def keep(self, weight: Tensor, bias: Tensor) -> None:
        """Leave the gradients of scale and shift, (K·C,) each, in the lanes."""
        for name, value in ((self.weight, weight), (self.bias, bias)):
            self.lanes.gradients[name] = value.view(len(self.lanes), -1)


class BatchNorm(_Norm):
    """Batch norm of (m, K·C, …) over all but the channels."""

    def __init__(self, lanes: Lanes, name: str, module: nn.BatchNorm2d) -> None:
        super().__init__(lanes, name)
        self.statistics = f"{name}.running_mean", f"{name}.running_var"
        self.eps, self.momentum = module.eps, module.momentum or 0.0

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance, (K·C,) each: the lanes' own memory."""
        mean, var = (self.lanes.statistics[name] for name in self.statistics)
        return mean.view(-1), var.view(-1)

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Normalise by the batch and move the running statistics, or normalise by those."""
        y, self.mean, self.invstd = torch.native_batch_norm(
            x, *self.affine(), *self.running(), training, self.momentum, self.eps
        )
        if training:
            self.x = x
        return y

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        weight, _ = self.affine()
        x, weight, bias = _BACKWARD(
            g, self.x, weight, None, None, self.mean, self.invstd, True, self.eps, [True] * 3
        )
        self.keep(weight, bias)
        return x


class GhostNorm(BatchNorm):
    """Batch norm over consecutive sub-batches; see :class:`models.norms.GhostBatchNorm`."""

    def __init__(self, lanes: Lanes, name: str, module: GhostBatchNorm) -> None:
        super().__init__(lanes, name, module)
        self.size = module.bn_batch_size

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Normalise by sub-batch in training mode, by the running statistics otherwise."""
        if not training or len(x) <= self.size:
            self.parts = []
            return super().forward(x, training)
        self.parts = x.split(self.size)
        scale, shift = self.affine()
        running = self.running()
        sums = [torch.zeros_like(value) for value in running]
        self.moments: list[tuple[Tensor, Tensor]] = []
        outputs: list[Tensor] = []
        for part in self.parts:
            own = [torch.zeros_like(value) for value in running]
            # Momentum 1 turns the running statistics into this sub-batch's own.
            y, mean, invstd = torch.native_batch_norm(
                part, scale, shift, *own, True, 1.0, self.eps
            )
            outputs.append(y)
            self.moments.append((mean, invstd))
            for total, value in zip(sums, own, strict=True):
                total.add_(value, alpha=len(part) / len(x))
        for value, average in zip(running, sums, strict=True):
            value.lerp_(average, self.momentum)
        return torch.cat(outputs)

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input, sub-batch by sub-batch."""
        if not self.parts:
            return super().backward(g)
        scale, _ = self.affine()
        of_scale, of_shift = torch.zeros_like(scale), torch.zeros_like(scale)
        out: list[Tensor] = []
        for part, own, moments in zip(g.split(self.size), self.parts, self.moments, strict=True):
            x, weight, bias = _BACKWARD(
                part, own, scale, None, None, *moments, True, self.eps, [True] * 3
            )
            out.append(x)
            of_scale.add_(weight)
            of_shift.add_(bias)
        self.keep(of_scale, of_shift)
        return torch.cat(out)


class GroupNorm(_Norm):
    """Group norm of (m, K·C, …): every example by itself, over the pixels of a channel group."""

    def __init__(self, lanes: Lanes, name: str, module: nn.GroupNorm) -> None:
        super().__init__(lanes, name)
        self.groups, self.eps = module.num_groups, module.eps

    def _sizes(self, x: Tensor) -> tuple[int, int, int, int]:
        """Examples, channels, pixels and groups of all lanes."""
        return len(x), x.shape[1], x[0, 0].numel(), self.groups * len(self.lanes)

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Normalise; training and evaluation do not differ."""
        y, mean, invstd = torch.native_group_norm(x, *self.affine(), *self._sizes(x), self.eps)
        if training:
            self.x, self.mean, self.invstd = x, mean, invstd
        return y

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        weight, _ = self.affine()
        x, weight, bias = torch.ops.aten.native_group_norm_backward(
            g, self.x, self.mean, self.invstd, weight, *self._sizes(g), [True] * 3
        )
        self.keep(weight, bias)
        return x
