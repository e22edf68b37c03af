"""The weights and batch statistics of K lanes, stored together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from smallbatch.protocol.optimiser import MOMENTS, PLAIN, Constants

ALIGNED = 16  # values; a multiple of four, as the widest load reads four values
SPAN = 1024  # values of a row; the gradients of one span have equally many parts


@dataclass
class LaneWeights:
    """The state of K copies of one model.

    Attributes:
        theta: All trained parameters, (K, P). A lane is one row, so that an update and the check
            for non-finite values take a few operations, however many layers there are.
        shapes: The shapes of one lane's parameters, by name.
        statistics: The running means and variances by name, (K, C) each; for vmap, all buffers,
            and parameters that are not trained unless all lanes share them.
        template: A plain model's state dict.
        packed: Whether memory is laid out for Triton's kernels: weights of convolutions are (size,
            size, C, O), and every parameter starts at a multiple of ALIGNED values, with zeros
            between.
        optimiser: The optimiser of the lanes.
        aliases: Further names in the state dict, each with the name above of the same tensor.
        moments: What the optimiser keeps for each weight, (K, P) each.
        views: The parameters by name, each a view (K, …) into ``theta``.
        partial: The gradient of the summed loss in parts to be added, (parts, K, P), written by a
            backward pass. There is one part unless `split` asks for more.
        used: The number of parts that each SPAN of values has, int32 (⌈P / SPAN⌉,).
        gradients: The first part of each parameter's gradient by name, a view (K, …).
    """

    theta: Tensor
    shapes: dict[str, torch.Size]
    statistics: dict[str, Tensor]
    template: dict[str, Tensor]
    packed: bool = False
    optimiser: Constants = PLAIN
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    moments: list[Tensor] = field(init=False)
    views: dict[str, Tensor] = field(init=False)
    partial: Tensor = field(init=False)
    used: Tensor = field(init=False)
    gradients: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._counts: dict[str, int] = {}
        count = MOMENTS[self.optimiser.optimizer]
        self.moments = [torch.zeros_like(self.theta) for _ in range(count)]
        self.used = torch.ones(
            -(-self.theta.shape[1] // SPAN), dtype=torch.int32, device=self.theta.device
        )
        self._bind()

    def __len__(self) -> int:
        return len(self.theta)

    @property
    def parameters(self) -> int:
        """The number of trained parameters of one lane."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def gradient(self) -> Tensor:
        """Gradient of the summed loss, (K, P)."""
        return self.partial[0] if len(self.partial) == 1 else self.partial.sum(0)

    def split(self, parts: Mapping[str, int]) -> None:
        """Make room for so many parts of each of these gradients; all others have one."""
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
        """Start and end of each parameter in a row."""
        sizes = [padded(shape.numel(), self.packed) for shape in self.shapes.values()]
        ends = list(itertools.accumulate(sizes))
        return {
            name: (end - size, end)
            for name, size, end in zip(self.shapes, sizes, ends, strict=True)
        }

    def _bind(self) -> None:
        # Free the old buffers before the new ones are made: with many lanes they are large.
        self.partial, self._all_parts, self.gradients = self.theta.new_empty(0), {}, {}
        self.partial = self.theta.new_zeros(max([1, *self._counts.values()]), *self.theta.shape)
        self.views, self._all_parts = self._named(self.theta), self._named(self.partial)
        self.gradients = {name: parts[0] for name, parts in self._all_parts.items()}

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views, by parameter name, into a tensor (…, P)."""
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
        """Drop all lanes but those of ``index``, an int64 tensor."""
        self.theta = self.theta[index]
        self.moments = [moment[index] for moment in self.moments]
        self.statistics = {name: value[index] for name, value in self.statistics.items()}
        self._bind()

    def update(self, *numbers: Tensor) -> None:
        """One update of every lane by :mod:`smallbatch.protocol.optimiser`'s formulas.

        Args:
            numbers: Two or three of each lane, (K,) each, as `coefficients` gives them.
        """
        decay, rate, *more = (number[:, None] for number in numbers)
        match self.optimiser.optimizer:
            case "sgd":
                self.theta.mul_(decay).addcmul_(self.gradient, rate, value=-1)
            case "adamw":
                self._adamw(decay, rate, *more)
            case _:
                self._momentum(decay, rate)

    def _momentum(self, decay: Tensor, rate: Tensor) -> None:
        [velocity], mu = self.moments, self.optimiser.beta1
        step = torch.addcmul(self.gradient, self.theta, decay)
        velocity.mul_(mu).add_(step)
        if self.optimiser.optimizer == "nesterov":
            velocity = step.add_(velocity, alpha=mu)
        self.theta.addcmul_(velocity, rate, value=-1)

    def _adamw(self, decay: Tensor, rate: Tensor, root: Tensor) -> None:
        (first, second), numbers = self.moments, self.optimiser
        gradient = self.gradient / numbers.batch_size
        first.lerp_(gradient, 1 - numbers.beta1)
        second.mul_(numbers.beta2).addcmul_(gradient, gradient, value=1 - numbers.beta2)
        step = torch.sqrt(second, out=gradient).div_(root).add_(numbers.eps)
        self.theta.mul_(decay).addcmul_(torch.div(first, step, out=step), rate, value=-1)

    def finite(self) -> Tensor:
        """Whether every weight of a lane is finite, bool (K,)."""
        # Minimum and maximum both propagate NaN, and nothing here waits for the device.
        low, high = self.theta.aminmax(dim=1)
        return low.isfinite() & high.isfinite()

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane as a plain model's state dict, on the CPU; each tensor owns its memory."""
        state = {name: value.clone() for name, value in self.template.items()}
        for name, value in {**self.views, **self.statistics}.items():
            if name in state:
                own = value[lane].detach().cpu()
                state[name] = own.clone(memory_format=torch.contiguous_format)
        return state | {alias: state[name].clone() for alias, name in self.aliases.items()}


def stack_lanes(
    builders: Sequence[Callable[[], nn.Module]],
    device: torch.device,
    dtype: torch.dtype,
    all_buffers: bool = False,
    packed: bool = False,
    shared: bool = False,
    optimiser: Constants = PLAIN,
) -> tuple[LaneWeights, nn.Module]:
    """Build K plain models one after another and stack their states.

    Args:
        builders: Functions that make one model each.
        device: The device of the lanes.
        dtype: The dtype of the lanes' parameters and statistics.
        all_buffers: Whether to stack every buffer, as vmap needs, and not only running statistics.
        packed: See `LaneWeights`.
        shared: Whether parameters that are not trained are the same in every lane, so that they are
            not stacked.
        optimiser: The optimiser of the lanes.

    Returns:
        The lanes, and the last of the models, which shows their structure.

    Raises:
        ValueError: There are no builders.
    """
    lanes, model = None, None
    for i, build in enumerate(builders):
        model = build()
        if lanes is None:
            lanes = _empty_lanes(
                model, len(builders), device, dtype, all_buffers, packed, shared, optimiser
            )
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
    shared: bool,
    optimiser: Constants,
) -> LaneWeights:
    named = dict(model.named_parameters())
    shapes = {name: it.shape for name, it in named.items() if it.requires_grad}
    fixed = {} if shared else {name: it for name, it in named.items() if name not in shapes}
    parameters = sum(padded(shape.numel(), packed) for shape in shapes.values())
    kinds = ("running_mean", "running_var")
    statistics = {
        name: value.new_zeros(
            k, *value.shape, device=device, dtype=dtype if value.is_floating_point() else None
        )
        for name, value in {**dict(model.named_buffers()), **fixed}.items()
        if all_buffers or name.endswith(kinds)
    }
    return LaneWeights(
        theta=torch.zeros(k, parameters, device=device, dtype=dtype),
        shapes=shapes,
        statistics=statistics,
        template={
            name: value.detach().to(dtype if value.is_floating_point() else None, copy=True)
            for name, value in model.state_dict().items()
        },
        packed=packed,
        optimiser=optimiser,
        aliases=_aliases(model),
    )


def _aliases(model: nn.Module) -> dict[str, str]:
    """Names of a state dict whose tensor an earlier name has already, as with tied weights."""
    first: dict[int, str] = {}
    named = model.state_dict(keep_vars=True).items()
    found = {name: first.setdefault(id(value), name) for name, value in named}
    return {name: other for name, other in found.items() if name != other}


def padded(values: int, packed: bool) -> int:
    """The number of values that a parameter takes in a row, gaps included."""
    return -(-values // ALIGNED) * ALIGNED if packed else values
