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
        theta: all trained parameters, flat: one after another, each with its K lanes together, so
            that K lanes of a parameter are one tensor for a kernel.
        views: each parameter by its name, a view (K, …) into ``theta``; four-dimensional ones have
            their channels last in memory, as a CPU's convolutions want them.
        statistics: running means and variances by name, (K, C) each; for vmap, all buffers.
        gradients: of the summed loss, by name, each in the shape of its view; set by a backward
            pass.
        parameters: trained parameters of one lane.
    """

    theta: Tensor
    shapes: dict[str, torch.Size]
    statistics: dict[str, Tensor]
    template: dict[str, Tensor]
    parameters: int
    views: dict[str, Tensor] = field(init=False)
    gradients: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        self._bind()

    def __len__(self) -> int:
        return len(self.theta) // self.parameters

    def _bind(self) -> None:
        sizes = [len(self) * shape.numel() for shape in self.shapes.values()]
        self.views = {}
        for part, (name, shape) in zip(self.theta.split(sizes), self.shapes.items(), strict=True):
            if len(shape) == 4:
                out, channels, height, width = shape
                view = part.view(-1, out, height, width, channels).permute(0, 1, 4, 2, 3)
            else:
                view = part.view(-1, *shape)
            self.views[name] = view

    def keep(self, index: Tensor) -> None:
        """Drop all lanes but those of ``index``, int64."""
        views = self.views
        self.theta = self.theta.new_empty(len(index) * self.parameters)
        self._bind()
        for name, view in self.views.items():
            view.copy_(views[name][index])
        self.statistics = {name: value[index] for name, value in self.statistics.items()}
        self.gradients = {}

    def update(self, decay: Tensor, base_lr: Tensor) -> None:
        """One step of every lane: θ ← θ·(1 − η·λ) − η̃·Σ∇L_i(θ) (eq. 5 with coupled decay).

        Args:
            decay: 1 − η·λ of each lane, (K,).
            base_lr: η̃ of each lane, (K,).
        """
        for name, view in self.views.items():
            shape = (-1, *[1] * (view.dim() - 1))
            view.mul_(decay.view(shape))
            view.addcmul_(self.gradients[name], base_lr.view(shape), value=-1)

    def finite(self) -> Tensor:
        """Whether every weight of a lane is finite, bool (K,)."""
        # A finite sum has only finite terms; the exact test is for sums that overflow themselves.
        if bool(self.theta.sum().isfinite()):
            return torch.ones(len(self), dtype=torch.bool, device=self.theta.device)
        finite = [view.flatten(1).isfinite().all(1) for view in self.views.values()]
        return torch.stack(finite).all(0)

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane as a plain model's state dict, on the CPU, each tensor owning its memory."""
        state = {name: value.clone() for name, value in self.template.items()}
        for name, value in {**self.views, **self.statistics}.items():
            if name in state:
                own = value[lane].detach().cpu()
                state[name] = own.clone(memory_format=torch.contiguous_format)
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
        theta=torch.zeros(k * parameters, device=device, dtype=dtype),
        shapes=shapes,
        statistics=statistics,
        template={name: value.detach().clone() for name, value in model.state_dict().items()},
        parameters=parameters,
    )
