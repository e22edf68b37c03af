"""The weights and statistics of K lanes: K runs of one column, held as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Lanes:
    """K copies of one model's state.

    Attributes:
        theta: all trained parameters, (K, P): a lane is one row, so that an update and a look for
            values that are not finite are a few operations however many layers there are.
        shapes: of the parameters of one lane, by name.
        statistics: running means and variances by name, (K, C) each; for vmap, all buffers.
        template: a plain model's state dict.
        views: each parameter by its name, a view (K, …) into ``theta``.
        gradient: of the summed loss, (K, P); a backward pass writes it.
        gradients: each parameter's by its name, a view (K, …) into ``gradient``.
    """

    theta: Tensor
    shapes: dict[str, torch.Size]
    statistics: dict[str, Tensor]
    template: dict[str, Tensor]
    views: dict[str, Tensor] = field(init=False)
    gradient: Tensor = field(init=False)
    gradients: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._bind()

    def __len__(self) -> int:
        return len(self.theta)

    @property
    def parameters(self) -> int:
        """Trained parameters of one lane."""
        return self.theta.shape[1]

    def _bind(self) -> None:
        self.gradient = torch.zeros_like(self.theta)
        self.views, self.gradients = self._named(self.theta), self._named(self.gradient)

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes.values()], 1)
        return {
            name: part.unflatten(1, shape) if shape else part[:, 0]
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def keep(self, index: Tensor) -> None:
        """Drop all lanes but those of ``index``, int64."""
        self.theta = self.theta[index]
        self.statistics = {name: value[index] for name, value in self.statistics.items()}
        self._bind()

    def update(self, decay: Tensor, base_lr: Tensor) -> None:
        """One step of every lane: θ ← θ·(1 − η·λ) − η̃·Σ∇L_i(θ) (eq. 5 with coupled decay).

        Args:
            decay: 1 − η·λ of each lane, (K,).
            base_lr: η̃ of each lane, (K,).
        """
        self.theta.mul_(decay[:, None]).addcmul_(self.gradient, base_lr[:, None], value=-1)

    def finite(self) -> Tensor:
        """Whether every weight of a lane is finite, bool (K,)."""
        # Both extremes pass NaN on, and none of this waits for the device.
        low, high = self.theta.aminmax(dim=1)
        return low.isfinite() & high.isfinite()

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane as a plain model's state dict, on the CPU, each tensor owning its memory."""
        state = {name: value.clone() for name, value in self.template.items()}
        for name, value in {**self.views, **self.statistics}.items():
            if name in state:
                state[name] = value[lane].detach().cpu().clone()
        return state


def stack_lanes(
    builders: Sequence[Callable[[], nn.Module]],
    device: torch.device,
    dtype: torch.dtype,
    all_buffers: bool = False,
) -> tuple[Lanes, nn.Module]:
    """Build K plain models one after another and stack their states.

    Args:
        builders: make one model each.
        device: of the lanes.
        dtype: of the lanes' parameters and statistics.
        all_buffers: stack every buffer, as vmap wants it, not only running statistics.

    Returns:
        The lanes, and the last of the models as the pattern of their structure.
    """
    lanes, model = None, None
    for i, build in enumerate(builders):
        model = build()
        if lanes is None:
            lanes = _empty_lanes(model, len(builders), device, dtype, all_buffers)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, value in {**lanes.views, **lanes.statistics}.items():
            value[i].copy_(state[name].detach())
    if lanes is None or model is None:
        raise ValueError("no lanes to stack")
    return lanes, model


def _empty_lanes(
    model: nn.Module, k: int, device: torch.device, dtype: torch.dtype, all_buffers: bool
) -> Lanes:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    parameters = sum(shape.numel() for shape in shapes.values())
    kinds = ("running_mean", "running_var")
    statistics = {
        name: value.new_zeros(
            k, *value.shape, device=device, dtype=dtype if value.is_floating_point() else None
        )
        for name, value in model.named_buffers()
        if all_buffers or name.endswith(kinds)
    }
    return Lanes(
        theta=torch.zeros(k, parameters, device=device, dtype=dtype),
        shapes=shapes,
        statistics=statistics,
        template={name: value.detach().clone() for name, value in model.state_dict().items()},
    )
