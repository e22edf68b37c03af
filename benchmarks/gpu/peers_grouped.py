"""K ResNet-8 as one network of K times the channels, in the manner of HFTA (MLSys 2021).

Convolutions have a group per lane, batch norms and biases are as wide as all lanes, the classifiers
are one batched matrix product, autograd makes the backward pass. Beyond HFTA, lanes of one seed
share the first convolution's input (a group per seed), and the update is three kernels over one
flat tensor.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.peers_batches import Batches, stacked, unstacked
from benchmarks.gpu.peers_task import CLASSES, WIDTHS, Array, Result, State, Task

EPS = 1e-5


class Grouped:
    """All lanes of a task; activations are (m, K·C, H, W)."""

    def __init__(
        self,
        task: Task,
        starts: list[State],
        device: torch.device,
        *,
        channels_last: bool = False,
    ) -> None:
        self.lanes, self.seeds, self.m = task.lanes, task.seeds, task.m
        self.momentum, self.channels_last = task.momentum, channels_last
        self.batches = Batches(task, device, channels_last=channels_last)
        self.counter = self.batches.counter
        weights = stacked(starts, device)
        self.running = {n: v.flatten().clone() for n, v in weights.items() if "running" in n}
        self.shapes = {n: v.shape[1:] for n, v in weights.items() if "running" not in n}
        self.theta = torch.cat([self._stored(weights[name]).reshape(-1) for name in self.shapes])
        lengths = [prod(shape) for shape in self.shapes.values()]
        self.decay, self.rate = (
            torch.from_numpy(rates).to(device, torch.float32)
            for rates in (
                _by_weight(task.decays, lengths),
                _by_weight(task.base_lrs, lengths),
            )
        )
        self.parameters = self._views(lengths)
        self.of_lane = torch.arange(self.lanes, device=device) // (self.lanes // self.seeds)

    def _stored(self, weight: Tensor) -> Tensor:
        """A weight (K, …) in the order in which it lies in theta."""
        last = self.channels_last and weight.dim() == 5
        return weight.permute(0, 1, 3, 4, 2) if last else weight

    def _views(self, lengths: list[int]) -> dict[str, Tensor]:
        """Leaves of autograd on theta's memory, of the shapes that the fused layers take."""
        found = dict[str, Tensor]()
        parts = self.theta.split([self.lanes * length for length in lengths])
        for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
            if len(shape) == 4:
                out, chans, height, width = shape
                if self.channels_last:
                    view = part.view(-1, height, width, chans).permute(0, 3, 1, 2)
                else:
                    view = part.view(self.lanes * out, chans, height, width)
            elif name.startswith("fc"):
                view = part.view(self.lanes, -1, shape[-1])
            else:
                view = part
            found[name] = view.detach().requires_grad_()
        return found

    def __call__(self) -> None:
        """One update of all lanes."""
        images, labels = self.batches.take()
        with torch.enable_grad():
            logits = self._forward(self._side_by_side(images))
            targets = labels.view(self.m, self.seeds).t().index_select(0, self.of_lane)
            losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            # No .grad is kept: gradients that add up over updates cannot happen.
            gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        with torch.no_grad():
            flat = torch.cat([self._flat(gradient) for gradient in gradients])
            self.theta.mul_(self.decay).addcmul_(flat, self.rate, value=-1)
            self.batches.loss_sum.add_(losses.detach().view(self.lanes, self.m).sum(1))
            self.batches.right.add_((logits.detach().argmax(2) == targets).sum(1))

    def _flat(self, gradient: Tensor) -> Tensor:
        """In theta's order; a view where the layer left it in that order."""
        if self.channels_last and gradient.dim() == 4:
            gradient = gradient.permute(0, 2, 3, 1)
        return gradient.reshape(-1)

    def _side_by_side(self, images: Tensor) -> Tensor:
        """The seeds' images (m·S, …) → (m, S·3, H, W)."""
        if not self.channels_last:
            return images.view(self.m, -1, *images.shape[2:])
        by_seed = images.unflatten(0, (self.m, self.seeds)).permute(0, 2, 3, 1, 4)
        return by_seed.flatten(3).permute(0, 3, 1, 2)

    def _forward(self, x: Tensor) -> Tensor:
        """(m, S·3, H, W) → logits (K, m, classes)."""
        x = self._norm(self._conv(x, "conv1", 1, self.seeds), "norm1").relu_()
        for block, width in enumerate(WIDTHS):
            name, stride = f"blocks.{block}", 1 if block == 0 else 2
            y = self._norm(self._conv(x, f"{name}.conv1", stride), f"{name}.norm1").relu_()
            y = self._norm(self._conv(y, f"{name}.conv2", 1), f"{name}.norm2")
            y = y.add_(x if stride == 1 else self._shortcut(x, width // 2))
            x = y.relu_()
        pooled = x.mean((2, 3)).view(self.m, self.lanes, -1).transpose(0, 1)
        weight, bias = self.parameters["fc.weight"], self.parameters["fc.bias"]
        return torch.baddbmm(bias.view(self.lanes, 1, CLASSES), pooled, weight.transpose(1, 2))

    def _conv(self, x: Tensor, name: str, stride: int, groups: int | None = None) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, 1, 1, groups or self.lanes)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.running_mean" not in self.running:
            return x
        return F.batch_norm(
            x, self.running[f"{name}.running_mean"], self.running[f"{name}.running_var"],
            self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"],
            True, self.momentum, EPS,
        )  # fmt: skip

    def _shortcut(self, x: Tensor, new: int) -> Tensor:
        """Every second pixel, and `new` channels of zeros after those of every lane."""
        if self.channels_last:
            lanes = x.permute(0, 2, 3, 1)[:, ::2, ::2].unflatten(3, (self.lanes, -1))
            return F.pad(lanes, (0, new)).flatten(3).permute(0, 3, 1, 2)
        lanes = x[:, :, ::2, ::2].unflatten(1, (self.lanes, -1))
        return F.pad(lanes, (0, 0, 0, 0, 0, new)).flatten(1, 2)

    def changed(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [*self.batches.changed(), self.theta, *self.running.values()]

    def result(self) -> Result:
        """The lanes as they are."""
        whole = {n: v.view(self.lanes, -1) for n, v in self.running.items()}
        for name, shape in self.shapes.items():
            # Not view: a channels-last weight has to be copied to come back in torch's order.
            whole[name] = self.parameters[name].reshape(self.lanes, *shape)
        return self.batches.result(unstacked(whole))


def _by_weight(rates: Array, lengths: list[int]) -> Array:
    """A lane's rate for every weight of every lane, in theta's order."""
    return np.concatenate([np.repeat(rates, length) for length in lengths])
