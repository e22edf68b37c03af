"""Batch, ghost and group normalisation, made from the number of channels alone."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
CHANNELS_PER_GROUP = 8
FEW = 32  # numbers that may be added one after another in float32: 2e-7 of the sum

NormFactory = Callable[[int], nn.Module]


def bn_momentum(batch_size: int) -> float:
    """Weight of the newest batch in the running statistics.

    The average is over a constant number of examples: 0.1 at m = 128, so 1 - 0.9^(m/128)
    (docs/decisions.md).
    """
    return 1.0 - 0.9 ** (batch_size / 128)


def summed_exactly(x: Tensor) -> Tensor:
    """The same values, on a CPU laid out so that torch's batch norm sums them in float64.

    Where the channels of a pixel are neighbours in memory, torch adds the values of a channel one
    after another in float32, forward and backward, and the error grows with their number: 2e-3 of
    a variance over 2,048 images of 32×32. Other layouts it sums in float64 (bfloat16 in float32).
    An input without pixels always counts as the former, unless it is transposed in memory.

    Args:
        x: (N, C) or (N, C, …), the input of a batch norm that takes its statistics from it.

    Returns:
        A tensor of the same shape; on a GPU, where torch sums by blocks, `x` itself.
    """
    if not x.is_cpu:
        return x
    if x.numel() > len(x) * x.shape[1]:
        return x.contiguous()
    return x.transpose(0, 1).contiguous().transpose(0, 1) if len(x) > FEW else x


def sum_exactly(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A forward pre-hook that applies `summed_exactly`, for batch norms of other packages."""
    if not layer.training and getattr(layer, "running_mean", None) is not None:
        return None
    return (summed_exactly(inputs[0]), *inputs[1:])


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of (N, C) and (N, C, H, W) alike, with exact sums over the batch.

    Like torch's, but it does not count the batches: with a fixed momentum nothing reads
    `num_batches_tracked`, and at m = 2 counting takes a quarter of the layer's forward time.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise; in training mode also move the running statistics."""
        return F.batch_norm(
            summed_exactly(input) if self.training else input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum or 0.0,
            self.eps,
        )


class GhostBatchNorm(BatchNorm):
    """Batch normalisation over consecutive sub-batches of the SGD batch (paper, Figs. 13 and 14).

    Examples 0 … b-1 of the batch are normalised together, then b … 2b-1, and so on. If b does not
    divide m, the last sub-batch is the smaller rest; if b ≥ m, this is plain batch norm.

    One update moves the running statistics once, towards the average over the sub-batches of
    their means and (unbiased) variances, each sub-batch weighted by its number of examples.
    """

    def __init__(
        self, num_features: int, bn_batch_size: int, eps: float = EPS, momentum: float = 0.1
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.bn_batch_size = bn_batch_size

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalise by sub-batch in training mode, by the running statistics otherwise."""
        total = len(input)
        rest = total % self.bn_batch_size
        if not self.training or total <= self.bn_batch_size:
            return super().forward(input)
        output, mean, var = self._normalise(input[: total - rest], self.bn_batch_size)
        if rest:
            last, last_mean, last_var = self._normalise(input[total - rest :], rest)
            output = torch.cat((output, last))
            mean = mean.lerp(last_mean, rest / total)
            var = var.lerp(last_var, rest / total)
        momentum = self.momentum or 0.0
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var, momentum)
        return output

    def _normalise(self, x: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise equal sub-batches of `size` examples.

        The sub-batches are folded into the channels, (g·size, C, …) → (size, g·C, …), so that one
        call of the fused kernel does all of them.

        Returns:
            The normalised input and the sub-batches' average mean and variance, (C,) each.
        """
        groups, channels = len(x) // size, self.num_features
        folded = summed_exactly(x.unflatten(0, (groups, size)).transpose(0, 1).flatten(1, 2))
        mean = self.weight.new_zeros(groups * channels)
        var = torch.zeros_like(mean)
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        # With momentum 1 the running statistics become those of this batch.
        output = F.batch_norm(folded, mean, var, weight, bias, True, 1.0, self.eps)
        output = output.unflatten(1, (groups, channels)).transpose(0, 1).flatten(0, 1)
        return output, mean.view(groups, channels).mean(0), var.view(groups, channels).mean(0)

    def extra_repr(self) -> str:
        """Torch's description, with the sub-batch size."""
        return f"{super().extra_repr()}, bn_batch_size={self.bn_batch_size}"


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with 8 channels per group, or a single group if 8 does not divide."""
    divides = channels % CHANNELS_PER_GROUP == 0
    return nn.GroupNorm(channels // CHANNELS_PER_GROUP if divides else 1, channels, eps=EPS)


def norm_factory(norm: str, bn_batch_size: int | None, momentum: float) -> NormFactory | None:
    """A function that makes a layer from its number of channels; None for norm `none`.

    Args:
        norm: One of `model_names.NORMS`; for `batch_conv` the model decides where to use it.
        bn_batch_size: Examples per sub-batch, for `ghost`.
        momentum: Weight of the newest batch in the running statistics.
    """

    def batch(channels: int) -> nn.Module:
        return BatchNorm(channels, eps=EPS, momentum=momentum)

    def ghost(channels: int) -> nn.Module:
        return GhostBatchNorm(channels, bn_batch_size or 0, EPS, momentum)

    factories: dict[str, NormFactory | None] = {
        "none": None,
        "batch": batch,
        "batch_conv": batch,
        "ghost": ghost,
        "group": group_norm,
    }
    return factories[norm]
