"""The weights of one plain model as one flat vector, and the optimisers that update it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from smallbatch.protocol.optimiser import LARGEST, betas_at

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig


class FlatWeights:
    """All trained parameters of a model and their gradient, as views into two flat vectors.

    An update then takes a few vector operations, however many layers there are.

    Attributes:
        theta: The trained parameters, (P,).
        gradient: The gradient of the summed loss, (P,), to which a backward pass adds.
        moments: What the optimiser keeps for each weight, (P,) each.
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.theta = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.gradient = torch.zeros_like(self.theta)
        self.moments: list[Tensor] = []
        sizes = [p.numel() for p in parameters]
        pairs = zip(self.theta.split(sizes), self.gradient.split(sizes), strict=True)
        for parameter, (weights, gradient) in zip(parameters, pairs, strict=True):
            parameter.data = weights.view_as(parameter)
            parameter.grad = gradient.view_as(parameter)

    def update(self, lr: float, update: int) -> None:
        """Apply the accumulated gradient of the summed loss and clear it.

        Args:
            lr: η of this update.
            update: The number of the update, from 0.
        """
        raise NotImplementedError

    def finite(self) -> Tensor:
        """Whether every weight is finite, bool (); does not wait for the device."""
        low, high = self.theta.aminmax()  # NaN if a weight is NaN, and then both comparisons fail
        return (low > -math.inf) & (high < math.inf)


class FlatSGD(FlatWeights):
    """Plain SGD in the sum form (eq. 5), with coupled weight decay.

    One update is θ ← θ − η̃·Σ∇L_i(θ) − η·λ·θ with η = m·η̃.
    """

    def __init__(self, model: nn.Module, weight_decay: float, batch_size: int) -> None:
        super().__init__(model)
        self.weight_decay, self.batch_size = weight_decay, batch_size

    def update(self, lr: float, update: int = 0) -> None:  # noqa: ARG002 - the same at each update
        """See :class:`FlatWeights`."""
        # Torch refuses rates beyond the dtype's range; its largest number diverges just as well.
        largest = torch.finfo(self.theta.dtype).max
        decay = max(1 - lr * self.weight_decay, -largest)
        self.theta.mul_(decay).sub_(self.gradient, alpha=min(lr / self.batch_size, largest))
        self.gradient.zero_()


class FlatMomentum(FlatWeights):
    """`torch.optim.SGD` with momentum, in the sum form: its rate is η̃, its weight decay m·λ."""

    def __init__(self, model: nn.Module, study: StudyConfig, batch_size: int) -> None:
        super().__init__(model)
        self.batch_size = batch_size
        self.moments = [torch.zeros_like(self.theta)]
        self._optimizer = torch.optim.SGD(
            [_parameter(self.theta, self.gradient)],
            momentum=study.momentum or 0.0,
            nesterov=study.optimizer == "nesterov",
            weight_decay=min(batch_size * study.weight_decay, LARGEST),
            foreach=False,
        )
        [parameter] = self._optimizer.param_groups[0]["params"]
        self._optimizer.state[parameter]["momentum_buffer"] = self.moments[0]

    def update(self, lr: float, update: int) -> None:  # noqa: ARG002 - the same at each update
        """See :class:`FlatWeights`."""
        self._optimizer.param_groups[0]["lr"] = min(lr / self.batch_size, LARGEST)
        self._optimizer.step()
        self.gradient.zero_()


class FlatAdamW(FlatWeights):
    """`torch.optim.AdamW` on the mean gradient, with rate η and decoupled weight decay."""

    def __init__(self, model: nn.Module, study: StudyConfig, batch_size: int) -> None:
        super().__init__(model)
        self.batch_size = batch_size
        self.moments = [torch.zeros_like(self.theta) for _ in range(2)]
        self._betas = betas_at(study, batch_size)
        self._optimizer = torch.optim.AdamW(
            [_parameter(self.theta, self.gradient)],
            betas=self._betas,
            eps=study.eps or 0.0,
            weight_decay=study.weight_decay,
            foreach=False,
        )
        [self._parameter] = self._optimizer.param_groups[0]["params"]
        names = ("exp_avg", "exp_avg_sq")
        self._optimizer.state[self._parameter].update(zip(names, self.moments, strict=True))

    def update(self, lr: float, update: int) -> None:
        """See :class:`FlatWeights`."""
        group = self._optimizer.param_groups[0]
        # Torch refuses rates beyond single precision, here η/(1 − β₁) and η·λ.
        group["lr"] = min(lr, LARGEST * (1 - self._betas[0]), LARGEST / max(1, self._decay))
        self._optimizer.state[self._parameter]["step"] = torch.tensor(float(update))
        self.gradient.div_(self.batch_size)
        self._optimizer.step()
        self.gradient.zero_()

    @property
    def _decay(self) -> float:
        return float(self._optimizer.param_groups[0]["weight_decay"])


def flat_weights(model: nn.Module, study: StudyConfig, batch_size: int) -> FlatWeights:
    """A model's weights with the optimiser of a study at m."""
    if study.optimizer == "sgd":
        return FlatSGD(model, study.weight_decay, batch_size)
    if study.optimizer == "adamw":
        return FlatAdamW(model, study, batch_size)
    return FlatMomentum(model, study, batch_size)


def _parameter(theta: Tensor, gradient: Tensor) -> nn.Parameter:
    """A parameter that shares its memory with ``theta``, as torch's optimisers take one."""
    parameter = nn.Parameter(theta, requires_grad=False)
    parameter.grad = gradient
    return parameter
