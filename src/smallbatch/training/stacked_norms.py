"""Batch, ghost and group normalisation over K lanes.

All three normalise rows: they bring the numbers that share a mean and a variance next to each
other, hand (1, rows, length) to torch's fused kernel, and put the result back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smallbatch.models.norms import GhostBatchNorm
from smallbatch.training.lanes import Lanes

# torch's kernel sums statistics one number at a time. Rows of this length and more are faster in
# several vectorised passes (3 times, in the cache); below it the calls cost more than they save.
LONG = 256
CACHED = 2**17  # numbers that are in a core's cache for all passes

_BACKWARD = torch.ops.aten.native_batch_norm_backward


class _Rows:
    """Normalises every row of (rows, length) to mean 0 and variance 1, then scales and shifts it.

    ``weight`` and ``bias`` are (rows,) or None.
    """

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        momentum: float,
    ) -> Tensor:
        """Normalise; ``mean`` and ``var`` (rows,) move towards the rows' own by ``momentum``.

        On a CPU long rows of ``x`` are overwritten: they lose their mean.
        """
        self.x, self.weight = x[None], weight
        if x.is_cpu and x.shape[1] >= LONG:
            return self._forward_long(x, weight, bias, mean, var, momentum)
        y, self.mean, self.invstd = torch.native_batch_norm(
            self.x, weight, bias, mean, var, True, momentum, self.eps
        )
        return y[0]

    def _forward_long(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        momentum: float,
    ) -> Tensor:
        """Three passes over rows that are in the cache, each of them vectorised."""
        length = x.shape[1]
        own_mean, norm = x.new_empty(len(x)), x.new_empty(len(x))
        for start in range(0, len(x), size := max(1, CACHED // length)):
            rows = slice(start, start + size)
            torch.mean(x[rows], 1, out=own_mean[rows])
            x[rows].sub_(own_mean[rows, None])
            torch.linalg.vector_norm(x[rows], dim=1, out=norm[rows])
        squares = norm.square_()  # overflows where torch's kernel does; 1/σ is then 0
        self.invstd = (squares / length).add_(self.eps).rsqrt_()
        self.mean = torch.zeros_like(own_mean)
        if mean is not None and var is not None:
            # Not lerp, which makes NaN of an infinite variance where torch's kernel does not.
            mean.mul_(1 - momentum).add_(own_mean, alpha=momentum)
            var.mul_(1 - momentum).add_(squares.div_(length - 1), alpha=momentum)
        scale = self.invstd if weight is None else weight * self.invstd
        shift = self.mean if bias is None else bias
        # With mean 0 and variance 1, evaluation mode is a scale and a shift in one pass.
        y, _, _ = torch.native_batch_norm(
            self.x, scale, shift, self.mean, torch.ones_like(scale), False, 0.0, 0.0
        )
        return y[0]

    def backward(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the input (rows, length), the weight and the bias (rows,)."""
        affine = self.weight is not None
        x, weight, bias = _BACKWARD(
            g[None], self.x, self.weight, None, None, self.mean, self.invstd, True, self.eps,
            [True, affine, affine],
        )  # fmt: skip
        return x[0], weight, bias


class BatchNorm:
    """Batch norm of (K, C, …, m) over all but K and C."""

    def __init__(self, lanes: Lanes, name: str, module: nn.BatchNorm2d) -> None:
        self.lanes, self.name = lanes, name
        self.eps, self.momentum = module.eps, module.momentum or 0.0
        self.rows = _Rows(module.eps)

    def _state(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, bias, running mean and running variance, (K·C,) each."""
        views, statistics = self.lanes.views, self.lanes.statistics
        return (
            views[f"{self.name}.weight"].reshape(-1),
            views[f"{self.name}.bias"].reshape(-1),
            statistics[f"{self.name}.running_mean"].view(-1),
            statistics[f"{self.name}.running_var"].view(-1),
        )

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Normalise by the batch and move the running statistics, or normalise by those."""
        rows = x.view(x.shape[0] * x.shape[1], -1)
        if training:
            return self.rows.forward(rows, *self._state(), self.momentum).view(x.shape)
        y, _, _ = torch.native_batch_norm(rows[None], *self._state(), False, 0.0, self.eps)
        return y.view(x.shape)

    def backward(self, g: Tensor, needed: bool) -> Tensor:  # noqa: ARG002
        """Gradients of weight, bias and input."""
        x, weight, bias = self.rows.backward(g.reshape(g.shape[0] * g.shape[1], -1))
        self._keep(weight.view(g.shape[:2]), bias.view(g.shape[:2]))
        return x.view(g.shape)

    def _keep(self, weight: Tensor, bias: Tensor) -> None:
        self.lanes.gradients[f"{self.name}.weight"] = weight
        self.lanes.gradients[f"{self.name}.bias"] = bias


class GhostNorm(BatchNorm):
    """Batch norm over consecutive sub-batches; see :class:`models.norms.GhostBatchNorm`."""

    def __init__(self, lanes: Lanes, name: str, module: GhostBatchNorm) -> None:
        super().__init__(lanes, name, module)
        self.size = module.bn_batch_size
        self.parts: list[_Part] = []

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Normalise by sub-batch in training mode, by the running statistics otherwise."""
        total = x.shape[-1]
        self.parts = []
        if not training or total <= self.size:
            return super().forward(x, training)
        whole = total // self.size * self.size
        weight, bias, running_mean, running_var = self._state()
        out = torch.empty_like(x)
        mean, var = torch.zeros_like(running_mean), torch.zeros_like(running_var)
        for start, stop, size in ((0, whole, self.size), (whole, total, total - whole)):
            if start < stop:
                part = _Part(x, start, stop, size, self.eps)
                share = (stop - start) / total
                part.forward(x, out, weight, bias, (mean, var), share)
                self.parts.append(part)
        running_mean.lerp_(mean, self.momentum)
        running_var.lerp_(var, self.momentum)
        return out

    def backward(self, g: Tensor, needed: bool) -> Tensor:
        """Gradients of weight, bias and input, sub-batch by sub-batch."""
        if not self.parts:
            return super().backward(g, needed)
        out = torch.empty_like(g, memory_format=torch.contiguous_format)
        weight, bias = g.new_zeros(g.shape[:2]), g.new_zeros(g.shape[:2])
        for part in self.parts:
            part.backward(g, out, weight, bias)
        self._keep(weight, bias)
        return out


class _Part:
    """Equal sub-batches: examples ``start`` … ``stop`` of (K, C, …, m) in groups of ``size``."""

    def __init__(self, x: Tensor, start: int, stop: int, size: int, eps: float) -> None:
        self.examples = slice(start, stop)
        self.groups, self.size = (stop - start) // size, size
        self.channels = x.shape[0] * x.shape[1]
        self.rows = _Rows(eps)

    def _split(self, x: Tensor) -> Tensor:
        """View of the part's examples as (K·C, groups, pixels, size)."""
        flat = x.view(self.channels, -1, x.shape[-1])[:, :, self.examples]
        return flat.unflatten(2, (self.groups, self.size)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        out: Tensor,
        weight: Tensor,
        bias: Tensor,
        statistics: tuple[Tensor, Tensor],
        share: float,
    ) -> None:
        """Normalise into ``out`` and add the part's share to the means and variances (K·C,)."""
        split = self._split(x)
        rows = split.reshape(self.channels * self.groups, -1)
        mean = rows.new_zeros(len(rows))
        var = torch.zeros_like(mean)
        w, b = (value.repeat_interleave(self.groups) for value in (weight, bias))
        # Momentum 1 turns the running statistics into this batch's own.
        y = self.rows.forward(rows, w, b, mean, var, 1.0)
        self._split(out).copy_(y.view(split.shape))
        for total, value in zip(statistics, (mean, var), strict=True):
            total.add_(value.view(self.channels, self.groups).mean(1), alpha=share)

    def backward(self, g: Tensor, out: Tensor, weight: Tensor, bias: Tensor) -> None:
        """Write the input's gradient into ``out``, add the parameters' to (K, C)."""
        split = self._split(g)
        x, w, b = self.rows.backward(split.reshape(self.channels * self.groups, -1))
        self._split(out).copy_(x.view(split.shape))
        for total, value in ((weight, w), (bias, b)):
            total.add_(value.view(*total.shape, self.groups).sum(2))


class GroupNorm:
    """Group norm of (K, C, …, m): every example by itself, over the pixels of a channel group."""

    def __init__(self, lanes: Lanes, name: str, module: nn.GroupNorm) -> None:
        self.lanes, self.name, self.groups = lanes, name, module.num_groups
        self.rows = _Rows(module.eps)

    def _split(self, x: Tensor) -> Tensor:
        """View as (K, groups, m, channels of a group · pixels)."""
        k, m = x.shape[0], x.shape[-1]
        return x.view(k, self.groups, -1, m).transpose(2, 3)

    def _normalised(self, x: Tensor) -> Tensor:
        split = self._split(x)
        length = split.shape[-1]
        y = self.rows.forward(split.reshape(-1, length), None, None, None, None, 0.0)
        return y.view(split.shape).transpose(2, 3).reshape(x.shape)

    def forward(self, x: Tensor, training: bool) -> Tensor:
        """Normalise; training and evaluation do not differ."""
        normal = self._normalised(x)
        if training:
            self.normal = normal
        shape = (*x.shape[:2], *[1] * (x.dim() - 2))
        weight = self.lanes.views[f"{self.name}.weight"].reshape(shape)
        return torch.addcmul(self.lanes.views[f"{self.name}.bias"].reshape(shape), normal, weight)

    def backward(self, g: Tensor, needed: bool) -> Tensor:  # noqa: ARG002
        """Gradients of weight, bias and input."""
        weight = self.lanes.views[f"{self.name}.weight"]
        self.lanes.gradients[f"{self.name}.weight"] = (g * self.normal).flatten(2).sum(2)
        self.lanes.gradients[f"{self.name}.bias"] = g.flatten(2).sum(2)
        split = self._split(g * weight.reshape(*g.shape[:2], *[1] * (g.dim() - 2)))
        x, _, _ = self.rows.backward(split.reshape(-1, split.shape[-1]))
        return x.view(split.shape).transpose(2, 3).reshape(g.shape)
