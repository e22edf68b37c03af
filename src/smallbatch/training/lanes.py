"""The weights and statistics of K lanes: K runs of one column, held as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

# Every parameter starts at a multiple of this many numbers, so that a matrix product meets the same
# alignment in every lane: results must not depend on which lane a run is in.
ALIGN = 16

# (Cout, C, kh, kw) → (kh, C, kw, Cout). One kernel row is then a (C·kw, Cout) matrix for the
# forward pass and, read otherwise, a (C, kw·Cout) matrix for the input's gradient: no copies.
_CONV_ORDER = (2, 1, 3, 0)


@dataclass(frozen=True)
class _Slot:
    """Where one parameter lies in a lane's row, and how it is laid out there."""

    start: int
    shape: tuple[int, ...]
    order: tuple[int, ...] | None

    def view(self, theta: Tensor) -> Tensor:
        """The parameter in all rows of (K, P), as (K, …)."""
        size = torch.Size(self.shape).numel()
        return theta[:, self.start : self.start + size].view(-1, *self.shape)


@dataclass
class Lanes:
    """K copies of one model's state.

    Attributes:
        theta: all trained parameters, (K, P).
        views: each parameter by its name, a view (K, …) into ``theta``. A conv's weight is laid
            out as (K, kh, C, kw, Cout).
        statistics: running means and variances by name, (K, C) each; for vmap, all buffers.
        gradients: of the summed loss, by name, each in the shape of its view; set by a backward
            pass.
        parameters: trained parameters of one lane, the padding of ``theta`` not counted.
    """

    theta: Tensor
    statistics: dict[str, Tensor]
    template: dict[str, Tensor]
    slots: dict[str, _Slot]
    parameters: int
    views: dict[str, Tensor] = field(init=False)
    gradients: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def __post_init__(self) -> None:
        self._bind()

    def __len__(self) -> int:
        return len(self.theta)

    def _bind(self) -> None:
        self.views = {name: slot.view(self.theta) for name, slot in self.slots.items()}

    def keep(self, index: Tensor) -> None:
        """Drop all lanes but those of ``index``, int64."""
        self.theta = self.theta[index]
        self.statistics = {name: value[index] for name, value in self.statistics.items()}
        self.gradients = {}
        self._bind()

    def update(self, decay: Tensor, base_lr: Tensor) -> None:
        """One step of every lane: θ ← θ·(1 − η·λ) − η̃·Σ∇L_i(θ) (eq. 5 with coupled decay).

        Args:
            decay: 1 − η·λ of each lane, (K,).
            base_lr: η̃ of each lane, (K,).
        """
        self.theta.mul_(decay[:, None])
        for name, view in self.views.items():
            step = base_lr.view(-1, *[1] * (view.dim() - 1))
            view.addcmul_(self.gradients[name], step, value=-1)

    def finite(self) -> Tensor:
        """Whether every weight of a lane is finite, bool (K,)."""
        # A finite sum has only finite terms; the exact test is for sums that overflow themselves.
        finite = self.theta.sum(1).isfinite()
        return finite if bool(finite.all()) else self.theta.isfinite().all(1)

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane as a plain model's state dict, on the CPU, each tensor owning its memory."""
        state = {name: value.clone() for name, value in self.template.items()}
        for name, slot in self.slots.items():
            value = self.views[name][lane]
            if slot.order:
                value = value.permute(*_inverse(slot.order))
            state[name] = value.detach().cpu().contiguous().clone()
        for name, value in self.statistics.items():
            if name in state:
                state[name] = value[lane].cpu().clone()
        return state


def stack_lanes(
    builders: Sequence[Callable[[], nn.Module]],
    device: torch.device,
    dtype: torch.dtype,
    plain: bool = False,
) -> tuple[Lanes, nn.Module]:
    """Build K plain models one after another and stack their states.

    Args:
        builders: make one model each.
        device: of the lanes.
        dtype: of the lanes' parameters and statistics.
        plain: leave convs' weights in torch's layout and stack every buffer, as vmap wants it.

    Returns:
        The lanes, and the last of the models as the pattern of their structure.
    """
    lanes, model = None, None
    for i, build in enumerate(builders):
        model = build()
        if lanes is None:
            lanes = _empty_lanes(model, len(builders), device, dtype, plain)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, slot in lanes.slots.items():
            value = state[name].detach()
            value = value.permute(*slot.order) if slot.order else value
            lanes.views[name][i].copy_(value)
        for name, value in lanes.statistics.items():
            value[i].copy_(state[name])
    if lanes is None or model is None:
        raise ValueError("no lanes to stack")
    return lanes, model


def _empty_lanes(
    model: nn.Module, k: int, device: torch.device, dtype: torch.dtype, plain: bool
) -> Lanes:
    modules = {} if plain else dict(model.named_modules())
    convs = {f"{name}.weight" for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    slots: dict[str, _Slot] = {}
    start = 0
    for name, parameter in model.named_parameters():
        order = _CONV_ORDER if name in convs else None
        shape = tuple(parameter.shape)
        slots[name] = _Slot(start, tuple(shape[i] for i in order) if order else shape, order)
        start += -(-parameter.numel() // ALIGN) * ALIGN
    kinds = ("running_mean", "running_var")
    statistics = {
        name: value.new_zeros(
            k, *value.shape, device=device, dtype=dtype if value.is_floating_point() else None
        )
        for name, value in model.named_buffers()
        if plain or name.endswith(kinds)
    }
    return Lanes(
        theta=torch.zeros(k, start, device=device, dtype=dtype),
        statistics=statistics,
        template={name: value.detach().clone() for name, value in model.state_dict().items()},
        slots=slots,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(i) for i in range(len(order)))
