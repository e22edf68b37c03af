"""Lanes computed by torch's operations or Triton's kernels, on a GPU as one CUDA graph."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from smallbatch.engines.kinds import Kernels
from smallbatch.engines.lanes.inputs import Tables, seen_by_all
from smallbatch.engines.lanes.kernels import default_kernels
from smallbatch.engines.lanes.network import Kit, StackedNet, has_stacked_form
from smallbatch.engines.lanes.step import Net, Step, Tail, TorchTail, capture
from smallbatch.engines.lanes.torch.convs import Grouped, Unrolled
from smallbatch.engines.lanes.torch.layers import TorchLayers
from smallbatch.engines.lanes.torch.vmap import VmapNet
from smallbatch.engines.lanes.weights import LaneWeights, stack_lanes
from smallbatch.engines.loop import initial_model
from smallbatch.engines.resident import Resident, Split
from smallbatch.protocol.optimiser import constants
from smallbatch.protocol.run import Run

# Images in one forward pass of an evaluation, over all lanes.
EVAL_IMAGES = {"cpu": 256, "cuda": 8192}
EVAL_PIXELS = 2**23  # most pixels of a lane in such a pass: offsets within a lane have 32 bits
# Devices on which a step is captured. Lanes that diverged are still computed there, not counted.
CAPTURED = {"cuda"}
# Seconds of captured updates before control returns to the caller, for signals and checkpoints.
STRETCH = 1.0
# Fraction of the lanes that must have diverged before the step is captured again without them.
WORTH_CAPTURING = 0.1


def build_net(
    runs: Sequence[Run],
    data: Resident,
    dtype: torch.dtype,
    kernels: Kernels | None = None,
) -> tuple[Net, nn.Module]:
    """The network of all lanes, initialised, and a plain model of its structure.

    Args:
        runs: The runs, all of one study and batch size; runs of one seed are next to each other.
        data: The resident data set; its device is that of the network.
        dtype: The dtype of the weights.
        kernels: The kernels for the paper's models; by default as `default_kernels` says.
    """
    device = data.train.images.device
    builders = [partial(initial_model, run, data) for run in runs]
    frozen = runs[0].settings.freeze is not None
    plain = frozen or not has_stacked_form(builders[0]())
    kernels = kernels or default_kernels(device, dtype, runs[0].settings.precision)
    packed = not plain and kernels == "triton"
    optimiser = constants(runs[0].settings, runs[0].batch_size)
    lanes, model = stack_lanes(
        builders, device, dtype, plain, packed, shared=frozen, optimiser=optimiser
    )
    if plain:
        return VmapNet(lanes, model), model
    return StackedNet(lanes, model, _kit(lanes, runs[0], data, kernels)), model


def _kit(lanes: LaneWeights, run: Run, data: Resident, kernels: Kernels) -> Kit:
    precision, dtype = run.settings.precision, lanes.theta.dtype
    half = torch.bfloat16 if precision == "bf16" else dtype
    if kernels != "triton":
        return TorchLayers(lanes, Unrolled() if kernels == "unrolled" else Grouped(), half)
    from smallbatch.engines.lanes.triton.convs import DOTS
    from smallbatch.engines.lanes.triton.layers import TritonLayers

    height, width = data.train.images.shape[2:]
    return TritonLayers(lanes, run.batch_size, (height, width), DOTS[precision], half)


def make_step(
    runs: Sequence[Run], data: Resident, dtype: torch.dtype, kernels: Kernels | None = None
) -> tuple[Step, nn.Module]:
    """The step of a network of lanes, and a plain model of its structure; see `build_net`."""
    device, precision = data.train.images.device, runs[0].settings.precision
    kernels = kernels or default_kernels(device, dtype, precision)
    net, model = build_net(runs, data, dtype, kernels)
    fused = kernels == "triton" and isinstance(net, StackedNet)
    return Step(net, Tables(runs, data, dtype, fused), _tail if fused else _torch_tail), model


def _tail(lanes: int, device: torch.device) -> Tail:
    from smallbatch.engines.lanes.triton.tail import TritonTail

    return TritonTail(lanes, device)


def _torch_tail(_lanes: int, _device: torch.device) -> Tail:
    return TorchTail()


class TorchLanes:
    """See :class:`~engines.lanes.trainer.Lanes`.

    Args:
        runs: The runs, all of one study and batch size; runs of one seed are next to each other.
        data: The resident data set.
        dtype: The dtype of the weights.
        kernels: See `build_net`.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        data: Resident,
        dtype: torch.dtype,
        kernels: Kernels | None = None,
    ) -> None:
        self.runs = list(runs)
        self.device = data.train.images.device
        self.step, self.model = make_step(runs, data, dtype, kernels)
        self.net, self.tables = self.step.net, self.step.tables
        self.parameters = self.net.lanes.parameters
        self.captured: Callable[[], None] | None = None
        self.first = self.last = -1  # the tables hold the updates first … last − 1
        self._seconds = math.inf  # that a captured update took
        self._under_way: tuple[float, int] | None = None  # start and number of captured updates

    def __len__(self) -> int:
        return len(self.runs)

    def advance(self, first: int, last: int) -> int:
        """On a GPU do as many updates as take about a second, on a CPU one."""
        if not self.first <= first < self.last:
            self.first, self.last = self.tables.load(first)
        if self.device.type in CAPTURED:
            if self.captured is None:
                self.captured = capture(self.step, self.step.state())
            updates = min(last - first, max(1, int(STRETCH / self._seconds)))
            self._under_way = time.perf_counter(), updates
            for _ in range(updates):
                self.captured()
            return updates
        self.step()
        return 1

    def sums(self) -> tuple[list[float], list[int], list[int]]:
        """See :class:`~engines.lanes.trainer.Lanes`; waits for the device."""
        loss, correct, _, ends = self.step.metrics
        diverged_at = [self.first + end if end else 0 for end in ends.tolist()]
        if self._under_way is not None:
            (started, updates), self._under_way = self._under_way, None
            self._seconds = (time.perf_counter() - started) / updates
        return loss.tolist(), correct.tolist(), diverged_at

    def clear(self) -> None:
        """See :class:`~engines.lanes.trainer.Lanes`; lanes that have diverged stay marked."""
        self.step.clear()

    def evaluate(
        self, split: Split, pause: Callable[[], None] = lambda: None
    ) -> tuple[list[float], list[float]]:
        """See :class:`~engines.lanes.trainer.Lanes`; all lanes see each batch at once."""
        net, k = self.net, len(self.net.lanes)
        loss = torch.zeros(k, dtype=torch.float64, device=self.device)
        correct = torch.zeros(k, dtype=torch.int64, device=self.device)
        size = max(16, EVAL_IMAGES[self.device.type] // k)
        size = min(size, max(1, EVAL_PIXELS // split.images[0, 0].numel()))
        for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
            logits = net.forward(seen_by_all(images, k), training=False)
            expanded = labels[:, None].expand(-1, k)
            loss -= logits.double().log_softmax(2).gather(2, expanded[:, :, None])[:, :, 0].sum(0)
            correct += (logits.argmax(2) == expanded).sum(0)
            pause()
        n = len(split)
        return [value / n for value in loss.tolist()], [value / n for value in correct.tolist()]

    def keep(self, kept: Sequence[int]) -> bool:
        """See :class:`~engines.lanes.trainer.Lanes`.

        A step that was captured must be captured again for fewer lanes. Therefore lanes are only
        dropped if many of them have diverged.
        """
        dead = len(self.runs) - len(kept)
        if not dead or (self.captured and dead < WORTH_CAPTURING * len(self.runs)):
            return False
        index = torch.tensor(kept, device=self.device)
        self.captured = None
        self.runs = [self.runs[lane] for lane in kept]
        self.net.lanes.keep(index)
        self.tables.keep(kept)
        self.step.keep(index)
        return True

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """See :meth:`~engines.lanes.weights.LaneWeights.state_dict`."""
        return self.net.lanes.state_dict(lane)

    def tensors(self, lanes: Sequence[int]) -> dict[str, Tensor]:
        """Weights, the optimiser's moments, statistics and the epoch's sums of these lanes."""
        index = torch.tensor(lanes, device=self.device)
        return {name: value[index].cpu() for name, value in self._tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Must be called before the first `advance`, which fills the tables."""
        for name, value in self._tensors().items():
            value.copy_(tensors[name])

    def _tensors(self) -> dict[str, Tensor]:
        lanes, metrics = self.net.lanes, self.step.metrics
        statistics = {f"statistic.{name}": value for name, value in lanes.statistics.items()}
        sums = {"loss": metrics.loss, "correct": metrics.correct, "seen": metrics.seen}
        moments = {f"moment.{i}": value for i, value in enumerate(lanes.moments)}
        return {"theta": lanes.theta, **moments, **statistics, **sums}
