"""The weights and statistics of K lanes: K runs of one column, held as one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ALIGNED = 16  # values: a load of four, the widest, begins at a multiple of four
SPAN = 1024  # values of a row whose gradients have equally many parts


@dataclass
class LaneWeights:
    """K copies of one model's state.

    Attributes:
        theta: all trained parameters, (K, P): a lane is one row, so that an update and a look for
            values that are not finite are a few operations however many layers there are.
        shapes: of the parameters of one lane, by name.
        statistics: running means and variances by name, (K, C) each; for vmap, all buffers.
        template: a plain model's state dict.
        packed: whether memory is laid out for Triton's kernels: convolutions' weights as (size,
            size, C, O), every parameter at a multiple of ALIGNED values, zeros in the gaps.
        views: each parameter by its name, a view (K, …) into ``theta``.
        partial: of the summed loss, parts (parts, K, P) whose sum is the gradient; a backward
            pass writes them. One part unless `split`.
        used: how many parts each SPAN of values has, int32 (⌈P / SPAN⌉,).
        gradients: each parameter's first part by its name, a view (K, …).
    """

    theta: Tensor
    shapes: dict[str, torch.Size]
    statistics: dict[str, Tensor]
    template: dict[str, Tensor]
    packed: bool = False
    views: dict[str, Tensor] = field(init=False)
    partial: Tensor = field(init=False)
    used: Tensor = field(init=False)
    gradients: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._counts: dict[str, int] = {}
        self.used = torch.ones(
            -(-self.theta.shape[1] // SPAN), dtype=torch.int32, device=self.theta.device
        )
        self._bind()

    def __len__(self) -> int:
        return len(self.theta)

    @property
    def parameters(self) -> int:
        """Trained parameters of one lane."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def gradient(self) -> Tensor:
        """Of the summed loss, (K, P)."""
        return self.partial[0] if len(self.partial) == 1 else self.partial.sum(0)

    def split(self, parts: Mapping[str, int]) -> None:
        """Make room for so many parts of these parameters' gradients; others have one."""
        self._counts = dict(parts)
        used = [1] * len(self.used)
        for name, (start, end) in self._places().items():
            for i in range(start // SPAN, -(-end // SPAN)):
                used[i] = max(used[i], parts.get(name, 1))
        self.used.copy_(torch.tensor(used))
        self._bind()

    def parts(self, name: str) -> Tensor:
        """The parts of a parameter's gradient, (parts, K, …)."""
        return self._all_parts[name][: self._counts.get(name, 1)]

    def _places(self) -> dict[str, tuple[int, int]]:
        """Where each parameter begins and ends in a row."""
        sizes = [padded(shape.numel(), self.packed) for shape in self.shapes.values()]
        ends = list(itertools.accumulate(sizes))
        return {
            name: (end - size, end)
            for name, size, end in zip(self.shapes, sizes, ends, strict=True)
        }

    def _bind(self) -> None:
        # What there was goes first: of many lanes it is large.
        self.partial, self._all_parts, self.gradients = self.theta.new_empty(0), {}, {}
        self.partial = self.theta.new_zeros(max([1, *self._counts.values()]), *self.theta.shape)
        self.views, self._all_parts = self._named(self.theta), self._named(self.partial)
        self.gradients = {name: parts[0] for name, parts in self._all_parts.items()}

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the last dimension of (…, P)."""
        found: dict[str, Tensor] = {}
        for name, (start, _) in self._places().items():
            shape = self.shapes[name]
            part = flat[..., start : start + shape.numel()]
            if self.packed and len(shape) == 4:
                out, channels, height, width = shape
                part = part.unflatten(-1, (height, width, channels, out))
                found[name] = part.movedim((-1, -2), (-4, -3))
            else:
                found[name] = part.unflatten(-1, shape) if shape else part[..., 0]
        return found

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
                own = value[lane].detach().cpu()
                state[name] = own.clone(memory_format=torch.contiguous_format)
        return state


def stack_lanes(
    builders: Sequence[Callable[[], nn.Module]],
    device: torch.device,
    dtype: torch.dtype,
    all_buffers: bool = False,
    packed: bool = False,
) -> tuple[LaneWeights, nn.Module]:
    """Build K plain models one after another and stack their states.

    Args:
        builders: make one model each.
        device: of the lanes.
        dtype: of the lanes' parameters and statistics.
        all_buffers: stack every buffer, as vmap wants it, not only running statistics.
        packed: see `LaneWeights`.

    Returns:
        The lanes, and the last of the models as the pattern of their structure.
    """
    lanes, model = None, None
    for i, build in enumerate(builders):
        model = build()
        if lanes is None:
            lanes = _empty_lanes(model, len(builders), device, dtype, all_buffers, packed)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, value in {**lanes.views, **lanes.statistics}.items():
            value[i].copy_(state[name].detach())
    if lanes is None or model is None:
        raise ValueError("no lanes to stack")
    return lanes, model


def _empty_lanes(
    model: nn.Module,
    k: int,
    device: torch.device,
    dtype: torch.dtype,
    all_buffers: bool,
    packed: bool,
) -> LaneWeights:
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    parameters = sum(padded(shape.numel(), packed) for shape in shapes.values())
    kinds = ("running_mean", "running_var")
    statistics = {
        name: value.new_zeros(
            k, *value.shape, device=device, dtype=dtype if value.is_floating_point() else None
        )
        for name, value in model.named_buffers()
        if all_buffers or name.endswith(kinds)
    }
    return LaneWeights(
        theta=torch.zeros(k, parameters, device=device, dtype=dtype),
        shapes=shapes,
        statistics=statistics,
        template={name: value.detach().clone() for name, value in model.state_dict().items()},
        packed=packed,
    )


def padded(values: int, packed: bool) -> int:
    """The room that a parameter takes in a row."""
    return -(-values // ALIGNED) * ALIGNED if packed else values
