"""Batch, ghost and group normalisation over K lanes by torch's functions, with K·C channels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.torch.convs import finish
from smallbatch.engines.lanes.weights import LaneWeights
from smallbatch.models.norms import GhostBatchNorm, summed_exactly

_BACKWARD = torch.ops.aten.native_batch_norm_backward


class _Norm(ABC):
    """A normalisation with scale and shift, followed by a ReLU."""

    def __init__(self, lanes: LaneWeights, name: str) -> None:
        self.lanes = lanes
        self.weight, self.bias = f"{name}.weight", f"{name}.bias"

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (K·C,) each."""
        views = self.lanes.views
        return views[self.weight].flatten(), views[self.bias].flatten()

    def keep(self, weight: Tensor, bias: Tensor) -> None:
        """Write the gradients of scale and shift, (K·C,) each, into the lanes."""
        for name, value in ((self.weight, weight), (self.bias, bias)):
            self.lanes.gradients[name].copy_(value.view(len(self.lanes), -1))

    def forward(self, x: Tensor, training: bool, shortcut: Shortcut | None = None) -> Tensor:
        """Relu(norm(x) + shortcut)."""
        return finish(self.normalise(x, training), len(self.lanes), shortcut, relu=True)

    @abstractmethod
    def normalise(self, x: Tensor, training: bool) -> Tensor:
        """The normalised input; in training mode keeps what `backward` needs."""


class BatchNorm(_Norm):
    """Batch norm of (m, K·C, …) over all but the channels."""

    def __init__(self, lanes: LaneWeights, name: str, module: nn.BatchNorm2d) -> None:
        super().__init__(lanes, name)
        self.statistics = f"{name}.running_mean", f"{name}.running_var"
        self.eps, self.momentum = module.eps, module.momentum or 0.0

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance, (K·C,) each, as views of the lanes' memory."""
        mean, var = (self.lanes.statistics[name] for name in self.statistics)
        return mean.view(-1), var.view(-1)

    def normalise(self, x: Tensor, training: bool) -> Tensor:
        """Normalise by the batch and update the running statistics, or in evaluation by these."""
        x = summed_exactly(x) if training else x
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
    """Batch norm over consecutive sub-batches; see :class:`models.norms.GhostBatchNorm`.

    Equal sub-batches are folded into the channels; a smaller last one is normalised separately.
    """

    def __init__(self, lanes: LaneWeights, name: str, module: GhostBatchNorm) -> None:
        super().__init__(lanes, name, module)
        self.size = module.bn_batch_size

    def normalise(self, x: Tensor, training: bool) -> Tensor:
        """By sub-batch in training mode, by the running statistics otherwise."""
        self.parts: list[tuple[Tensor, Tensor, Tensor]] = []
        if not training or len(x) <= self.size:
            return super().normalise(x, training)
        running, outputs = self.running(), list[Tensor]()
        sums = [torch.zeros_like(value) for value in running]
        for part, groups in self._split(x):
            folded = summed_exactly(_fold(part, groups))
            own = [running[0].new_zeros(folded.shape[1]) for _ in running]
            scale, shift = self._affine(groups)
            # Momentum 1 turns the running statistics into these sub-batches' own.
            y, mean, invstd = torch.native_batch_norm(
                folded, scale, shift, own[0], own[1], True, 1.0, self.eps
            )
            outputs.append(_unfold(y, groups))
            self.parts.append((folded, mean, invstd))
            for total, value in zip(sums, own, strict=True):
                total.add_(value.view(groups, -1).mean(0), alpha=len(part) / len(x))
        for value, average in zip(running, sums, strict=True):
            value.lerp_(average, self.momentum)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        if not self.parts:
            return super().backward(g)
        sums = [torch.zeros_like(value) for value in self.affine()]
        out: list[Tensor] = []
        for (part, groups), (folded, mean, invstd) in zip(self._split(g), self.parts, strict=True):
            scale, _ = self._affine(groups)
            x, *gradients = _BACKWARD(
                _fold(part, groups), folded, scale, None, None, mean, invstd, True, self.eps,
                [True] * 3,
            )  # fmt: skip
            out.append(_unfold(x, groups))
            for total, value in zip(sums, gradients, strict=True):
                total.add_(value.view(groups, -1).sum(0))
        self.keep(*sums)
        return out[0] if len(out) == 1 else torch.cat(out)

    def _split(self, x: Tensor) -> list[tuple[Tensor, int]]:
        """The equal sub-batches together, then a smaller last one, each with the number of them."""
        groups, rest = divmod(len(x), self.size)
        whole = len(x) - rest
        return [(x[:whole], groups), *([(x[whole:], 1)] if rest else [])]

    def _affine(self, groups: int) -> list[Tensor]:
        return [value.repeat(groups) for value in self.affine()]


def _fold(x: Tensor, groups: int) -> Tensor:
    """(groups·size, C, …) → (size, groups·C, …)."""
    return x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)


def _unfold(x: Tensor, groups: int) -> Tensor:
    """(size, groups·C, …) → (groups·size, C, …)."""
    return x.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


class GroupNorm(_Norm):
    """Group norm of (m, K·C, …): statistics of each example and channel group."""

    def __init__(self, lanes: LaneWeights, name: str, module: nn.GroupNorm) -> None:
        super().__init__(lanes, name)
        self.groups, self.eps = module.num_groups, module.eps

    def _sizes(self, x: Tensor) -> tuple[int, int, int, int]:
        """Examples, channels, pixels and groups of all lanes."""
        return len(x), x.shape[1], x[0, 0].numel(), self.groups * len(self.lanes)

    def normalise(self, x: Tensor, training: bool) -> Tensor:
        """Normalise; training and evaluation do not differ."""
        y, mean, invstd = torch.native_group_norm(x, *self.affine(), *self._sizes(x), self.eps)
        if training:
            self.x, self.mean, self.invstd = x, mean, invstd
        return y

    def backward(self, g: Tensor) -> Tensor:
        """Gradients of weight, bias and input."""
        weight, _ = self.affine()
        x, weight, bias = torch.ops.aten.native_group_norm_backward(
            g.contiguous(), self.x, self.mean, self.invstd, weight, *self._sizes(g), [True] * 3
        )
        self.keep(weight, bias)
        return x


def make_norm(lanes: LaneWeights, name: str, module: nn.Module) -> BatchNorm | GroupNorm:
    """The layer over K lanes for a plain model's normalisation.

    Raises:
        TypeError: The module is no batch, ghost or group norm.
    """
    if isinstance(module, GhostBatchNorm):
        return GhostNorm(lanes, name, module)
    if isinstance(module, nn.BatchNorm2d):
        return BatchNorm(lanes, name, module)
    if isinstance(module, nn.GroupNorm):
        return GroupNorm(lanes, name, module)
    raise TypeError(f"{type(module).__name__} has no stacked form")
