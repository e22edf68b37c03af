"""Lanes computed by torch's operations and Triton's kernels, as one CUDA graph on a GPU."""

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
from smallbatch.protocol.run import Run

# Images of all lanes together in one forward pass of an evaluation.
EVAL_IMAGES = {"cpu": 256, "cuda": 8192}
EVAL_PIXELS = 2**23  # of them at most: offsets within a lane have 32 bits
# Devices on which a step is captured; lanes that diverge are masked there until their epoch ends.
CAPTURED = {"cuda"}
# Seconds of captured updates between two looks at anything else: signals, checkpoints.
STRETCH = 1.0
# Part of the lanes that must have diverged before a captured step is captured again without them.
WORTH_CAPTURING = 0.1


def build_net(
    runs: Sequence[Run],
    data: Resident,
    dtype: torch.dtype,
    kernels: Kernels | None = None,
) -> tuple[Net, nn.Module]:
    """The network of all lanes, initialised, and a plain model of its structure.

    Args:
        runs: of one study and batch size, those of one seed next to each other.
        data: the resident data set; its device is the network's.
        dtype: of the weights.
        kernels: what computes the paper's models; see `default_kernels`.
    """
    device = data.train.images.device
    builders = [partial(initial_model, run, data) for run in runs]
    plain = not has_stacked_form(builders[0]())
    kernels = kernels or default_kernels(device, dtype, runs[0].settings.precision)
    packed = not plain and kernels == "triton"
    lanes, model = stack_lanes(builders, device, dtype, plain, packed)
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
    """A step of a network of lanes, and a plain model of its structure; see `build_net`."""
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
    """See :class:`~engines.lanes.trainer.LaneWeights`.

    Args:
        runs: of one study and batch size, those of one seed next to each other.
        data: the resident data set.
        dtype: of the weights.
        kernels: see `build_net`.
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
        self.first = self.last = -1  # updates that the tables hold
        self._seconds = math.inf  # of a captured update
        self._under_way: tuple[float, int] | None = None  # captured updates: their start, number

    def __len__(self) -> int:
        return len(self.runs)

    def advance(self, first: int, last: int) -> int:
        """As many updates as take about a second on a GPU; on a CPU one."""
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
        """Waits for the device."""
        loss, correct, _, ends = self.step.metrics
        diverged_at = [self.first + end if end else 0 for end in ends.tolist()]
        if self._under_way is not None:
            (started, updates), self._under_way = self._under_way, None
            self._seconds = (time.perf_counter() - started) / updates
        return loss.tolist(), correct.tolist(), diverged_at

    def clear(self) -> None:
        """Lanes that have diverged stay so."""
        self.step.clear()

    def evaluate(
        self, split: Split, pause: Callable[[], None] = lambda: None
    ) -> tuple[list[float], list[float]]:
        """All lanes see each batch at once."""
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
        """On a GPU only if a good part of the lanes is gone: another capture must pay."""
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
        """Weights, statistics and the epoch's sums."""
        index = torch.tensor(lanes, device=self.device)
        return {name: value[index].cpu() for name, value in self._tensors().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Before the first `advance`, which fills the tables."""
        for name, value in self._tensors().items():
            value.copy_(tensors[name])

    def _tensors(self) -> dict[str, Tensor]:
        lanes, metrics = self.net.lanes, self.step.metrics
        statistics = {f"statistic.{name}": value for name, value in lanes.statistics.items()}
        sums = {"loss": metrics.loss, "correct": metrics.correct, "seen": metrics.seen}
        return {"theta": lanes.theta, **statistics, **sums}
