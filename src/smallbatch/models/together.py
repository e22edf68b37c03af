"""Batch norm over examples that several processes hold, each an equal share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from smallbatch.errors import UserError
from smallbatch.models.norms import BatchNorm, GhostBatchNorm

if TYPE_CHECKING:
    from smallbatch.models.population import BatchNormLayer

# What a layer of these classes does in training is known; a subclass may do more.
_PLAIN = (BatchNorm, GhostBatchNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Together:
    """Processes that hold equal shares of a BN batch.

    Attributes:
        size: Their number.
        sum: Replaces a tensor by its sum over them.
    """

    size: int
    sum: Callable[[Tensor], None]


def normalise_together(layer: BatchNormLayer, together: Together) -> None:
    """Let a batch norm take its statistics in training from the shares of several processes.

    Its input is then this process's share of a BN batch. Torch's `SyncBatchNorm` does the same on
    GPUs, and refuses tensors of a CPU.

    Raises:
        UserError: It is of a class that may do more than normalise.
    """
    kind = type(layer)
    as_ever = cast("Callable[[nn.Module, Tensor], Tensor]", kind.forward)
    if kind not in _PLAIN:
        raise UserError(
            f"compute.ranks: {kind.__module__}.{kind.__name__} cannot span ranks, "
            "allowed: norm ghost with a bn_batch_size that fits a rank's share, or ranks 1"
        )

    def forward(x: Tensor) -> Tensor:
        return _over_ranks(layer, x, together) if layer.training else as_ever(layer, x)

    layer.__dict__["forward"] = forward


def _over_ranks(layer: Any, x: Tensor, together: Together) -> Tensor:
    output, mean, var = _OverRanks.apply(x, layer.weight, layer.bias, layer.eps, together)
    if layer.running_mean is not None:
        values = x.numel() // x.shape[1] * together.size
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(var * (values / (values - 1)), layer.momentum)
        if not isinstance(layer, BatchNorm):
            layer.num_batches_tracked += 1  # as torch's layers count
    return output


class _OverRanks(torch.autograd.Function):
    """Batch norm of an input of which each process holds an equal share, forward and backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        together: Together,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(x)
        var, mean = (it.double() for it in torch.var_mean(wide, _all_but_channels(x), correction=0))
        # The mean square is exact enough in float64 for the variance to be taken from it.
        moments = torch.stack((mean, var + mean.square()))
        together.sum(moments)
        mean, square = moments / together.size
        var = (square - mean.square()).clamp_min(0)
        mean, inverse, var = (it.to(wide.dtype) for it in (mean, (var + eps).rsqrt(), var))
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.together = together
        ctx.mark_non_differentiable(mean, var)
        output = (wide - _per_channel(mean, x)) * _per_channel(inverse, x)
        if weight is not None and bias is not None:
            output = output.mul_(_per_channel(weight, x)).add_(_per_channel(bias, x))
        return output.to(x.dtype), mean, var

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - as torch's is untyped
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient = _wide(gradients[0])
        normal = (_wide(x) - _per_channel(mean, x)) * _per_channel(inverse, x)
        precise = torch.float64 if x.is_cpu else gradient.dtype  # GPUs sum by blocks
        own = torch.stack([
            it.sum(_all_but_channels(x), dtype=precise) for it in (gradient, gradient * normal)
        ])  # fmt: skip
        average = own.double().clone()
        ctx.together.sum(average)
        average /= x.numel() // x.shape[1] * ctx.together.size
        shift, slope = (_per_channel(it.to(gradient.dtype), x) for it in average)
        scale = inverse if weight is None else inverse * weight
        inner = (gradient - shift - normal * slope) * _per_channel(scale, x)
        if weight is None:
            return inner.to(x.dtype), None, None, None, None
        # What the weights get is summed over processes with the whole gradient.
        bias_gradient, weight_gradient = own.to(weight.dtype)
        return inner.to(x.dtype), weight_gradient, bias_gradient, None, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _all_but_channels(x: Tensor) -> list[int]:
    return [i for i in range(x.dim()) if i != 1]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.dim() - 2))
