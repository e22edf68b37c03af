"""The `stacked` engine: the runs of a column computed together, each in a lane of its own.

Every lane has its own weights, batch statistics, learning rate, seed and outcome, and gets the
numbers that :mod:`smallbatch.training.loop` would get, but for the rounding of sums that are taken
in another order. No operation mixes lanes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from smallbatch.models import has_batch_norm, recompute_population_statistics
from smallbatch.training import loop
from smallbatch.training.choice import default_convs, default_fusing, default_tail
from smallbatch.training.lane_convs import Convs, Grouped
from smallbatch.training.lane_inputs import Tables, seen_by_all
from smallbatch.training.lane_step import Net, Step, capture
from smallbatch.training.lane_vmap import VmapNet
from smallbatch.training.lanes import stack_lanes
from smallbatch.training.loop import Row, RunResult, arithmetic, initial_model
from smallbatch.training.protocol import Run, updates_after
from smallbatch.training.resident import Resident, Split
from smallbatch.training.stacked_models import StackedNet, has_stacked_form

# Images of all lanes together in one forward pass of an evaluation.
EVAL_IMAGES = {"cpu": 256, "cuda": 8192}
# Devices on which a step is captured; lanes that diverge are masked there until their epoch ends.
CAPTURED = {"cuda"}
# Part of the lanes that must have diverged before a captured step is captured again without them.
WORTH_CAPTURING = 0.1

EpochObserver = Callable[[Run, Row], None]
EndObserver = Callable[[Run, RunResult, float], None]


def train_lanes(
    runs: Sequence[Run],
    data: Resident,
    *,
    dtype: torch.dtype = torch.float32,
    on_epoch: EpochObserver = lambda *_: None,
    on_end: EndObserver = lambda *_: None,
    convs: Convs | None = None,
) -> list[RunResult]:
    """Train runs of one column together.

    Args:
        runs: of one study and batch size.
        data: the resident data set; its device and dtype are the runs'.
        dtype: of the weights; float64 is for tests of exactness.
        on_epoch: called with each run's row as an epoch ends.
        on_end: called as a run ends, with its share of the seconds; a diverged run ends at once on
            a CPU, with its epoch on a GPU.
        convs: the convolutions' algorithm; by default the fastest for each shape on a GPU.

    Returns:
        The results in the order of ``runs``.
    """
    device = data.train.images.device
    study = runs[0].settings
    if any((run.settings, run.batch_size) != (study, runs[0].batch_size) for run in runs):
        raise ValueError("the lanes of a column share their study and batch size")
    with torch.no_grad(), arithmetic(study.precision, device):
        trainer = _Trainer(runs, data, dtype, on_epoch, on_end, convs)
        trainer.run()
    return [trainer.results[run] for run in runs]


def build_net(
    runs: Sequence[Run],
    data: Resident,
    dtype: torch.dtype,
    convs: Convs | None = None,
    fused: bool | None = None,
) -> tuple[Net, nn.Module]:
    """The network of all lanes, initialised, and a plain model of its structure.

    Args:
        runs: as for `train_lanes`.
        data: likewise.
        dtype: likewise.
        convs: likewise.
        fused: whether batch norms are done by Triton's kernels; by default where that works.
    """
    builders = [partial(initial_model, run, data) for run in runs]
    plain = not has_stacked_form(builders[0]())
    lanes, model = stack_lanes(builders, data.train.images.device, dtype, plain)
    if plain:
        return VmapNet(lanes, model), model
    precision = runs[0].settings.precision
    # Float64 is for tests: by torch, which has it everywhere.
    single = dtype == torch.float32
    convs = convs or (default_convs(lanes.theta.device, precision) if single else Grouped())
    half = torch.bfloat16 if precision == "bf16" else dtype
    if fused is None:
        fused = single and default_fusing(lanes.theta.device)
    return StackedNet(lanes, model, convs, half, fused), model


class _Trainer:
    def __init__(
        self,
        runs: Sequence[Run],
        data: Resident,
        dtype: torch.dtype,
        on_epoch: EpochObserver,
        on_end: EndObserver,
        convs: Convs | None,
    ) -> None:
        self.runs = sorted(runs, key=lambda run: run.seed)  # lanes of a seed share their images
        self.data, self.on_epoch, self.on_end = data, on_epoch, on_end
        self.clock, self.share = time.perf_counter(), 0.0
        self.device = data.train.images.device
        self.net, self.model = build_net(self.runs, data, dtype, convs)
        fused = dtype == torch.float32 and default_fusing(self.device)
        self.tables = Tables(self.runs, data, dtype, fused)
        self.step = Step(self.net, self.tables, default_tail(self.device, dtype))
        self.captured: Callable[[], None] | None = None
        self.rows: dict[Run, list[Row]] = {run: [] for run in runs}
        self.results: dict[Run, RunResult] = {}

    def run(self) -> None:
        """Train until every lane has finished or diverged."""
        study, n, m = self.runs[0].settings, len(self.data.train), self.runs[0].batch_size
        for epoch in range(1, study.epochs + 1):
            first = updates_after(epoch - 1, n, m)
            left = self.tables.load(epoch)
            while left:
                left -= self._advance(left)
                self._end_diverged(epoch, first)
                if len(self.results) == len(self.rows):
                    return
            self._end_epoch(epoch, updates_after(epoch, n, m))
        self._end_finished()

    def _advance(self, updates: int) -> int:
        """Do updates: all of them on a GPU, on a CPU as far as the first at which a lane ends."""
        if self.device.type in CAPTURED:
            if self.captured is None:
                self.captured = capture(self.step, self.step.state())
            for _ in range(updates):
                self.captured()
            return updates
        for done in range(1, updates + 1):
            self.step()
            if not all(self.step.alive()):
                return done
        return updates

    def _row(self, lane: int, epoch: int, updates: int) -> Row:
        metrics, run = self.step.metrics, self.tables.runs[lane]
        seen = int(metrics.seen[lane]) * run.batch_size
        row: Row = {
            "epoch": epoch,
            "updates": updates,
            "lr": self.tables.lr(lane, updates - 1),
            "train_loss": metrics.loss[lane].item() / seen,
            "train_accuracy": metrics.correct[lane].item() / seen,
        }
        for split in ("validation", "test"):
            row |= {f"{split}_loss": math.nan, f"{split}_accuracy": math.nan}
        return row

    def _end_epoch(self, epoch: int, updates: int) -> None:
        live = {i: run for i, run in enumerate(self.runs) if run not in self.results}
        rows = {lane: self._row(lane, epoch, updates) for lane in live}
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            if split is not None:
                losses, accuracies = evaluate(self.net, split)
                for lane, row in rows.items():
                    row |= {f"{name}_loss": losses[lane], f"{name}_accuracy": accuracies[lane]}
        self._share_time()
        for lane, run in live.items():
            self.rows[run].append(rows[lane])
            self.on_epoch(run, rows[lane])
        self.step.clear()

    def _end_diverged(self, epoch: int, first: int) -> None:
        """Give lanes that have diverged their outcome, and drop them where that is worth it."""
        ends = self.step.metrics.diverged.tolist()
        self._share_time()
        for lane, (run, update) in enumerate(zip(self.runs, ends, strict=True)):
            if update and run not in self.results:
                row = self._row(lane, epoch, first + update)
                self.rows[run].append(row)
                self.on_epoch(run, row)
                self._finish(run, first + update, dict.fromkeys(_FINAL), {})
        kept = [lane for lane, update in enumerate(ends) if not update]
        dead = len(ends) - len(kept)
        if not kept or not dead or (self.captured and dead < WORTH_CAPTURING * len(ends)):
            return
        index = torch.tensor(kept, device=self.device)
        self.captured = None
        self.runs = [self.runs[lane] for lane in kept]
        self.net.lanes.keep(index)
        self.tables.keep(kept)
        self.step.keep(index)

    def _end_finished(self) -> None:
        """Give the remaining lanes their final metrics and weights."""
        losses, accuracies = evaluate(self.net, self.data.train)
        norms, lanes = has_batch_norm(self.model), self.net.lanes
        self.model.to(self.device, lanes.theta.dtype)
        for lane, run in enumerate(self.runs):
            if run in self.results:
                continue
            last = self.rows[run][-1]
            final: dict[str, float | None] = {**dict.fromkeys(_FINAL)}
            final |= {"train_loss": losses[lane], "train_accuracy": accuracies[lane]}
            for name in ("test", "validation"):
                if name == "test" or self.data.validation is not None:
                    final |= {key: last[key] for key in (f"{name}_loss", f"{name}_accuracy")}
            weights = lanes.state_dict(lane)
            if norms:
                self.model.load_state_dict(weights)
                scores = _population_scores(self.model, self.data)
                final["population_test_loss"], final["population_test_accuracy"] = scores
            self._share_time()
            self._finish(run, None, final, weights)

    def _finish(
        self,
        run: Run,
        diverged_at: int | None,
        final: dict[str, float | None],
        weights: dict[str, Tensor],
    ) -> None:
        result = RunResult(
            outcome="finished" if diverged_at is None else "diverged",
            diverged_at=diverged_at,
            rows=self.rows[run],
            final=final,
            parameters=self.net.lanes.parameters,
            weights=weights,
        )
        self.results[run] = result
        self.on_end(run, result, self.share)

    def _share_time(self) -> None:
        # Lanes share the clock equally while they live: runs' seconds add up to the chunk's.
        now = time.perf_counter()
        self.share += (now - self.clock) / max(1, len(self.rows) - len(self.results))
        self.clock = now


_FINAL = (
    "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss",
    "test_accuracy", "population_test_loss", "population_test_accuracy",
)  # fmt: skip


def _population_scores(model: nn.Module, data: Resident) -> tuple[float, float]:
    """Test loss and accuracy of a plain model under exact batch statistics, as the loop's."""
    stride = -(-data.train.images[:, 0].numel() // loop.POPULATION_PIXELS)
    recompute_population_statistics(model, data.train.images[::stride])
    return loop.evaluate(model, data.test)


def evaluate(net: Net, split: Split) -> tuple[list[float], list[float]]:
    """Mean cross-entropy in nats and accuracy in 0 … 1 of every lane, in evaluation mode."""
    k, device = len(net.lanes), net.lanes.theta.device
    loss = torch.zeros(k, dtype=torch.float64, device=device)
    correct = torch.zeros(k, dtype=torch.int64, device=device)
    size = max(16, EVAL_IMAGES[device.type] // k)
    for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
        logits = net.forward(seen_by_all(images, k), training=False)
        expanded = labels[:, None].expand(-1, k)
        loss -= logits.double().log_softmax(2).gather(2, expanded[:, :, None])[:, :, 0].sum(0)
        correct += (logits.argmax(2) == expanded).sum(0)
    n = len(split)
    return [value / n for value in loss.tolist()], [value / n for value in correct.tolist()]


def lane_bytes(run: Run, data: Resident, dtype: torch.dtype = torch.float32) -> int:
    """Memory that one lane takes, estimated from a plain model's activations for one image.

    Every layer keeps its output for the backward pass, which itself holds a few of the widest at a
    time; parameters are there as weights, gradients and the step's temporary.
    """
    model = initial_model(run, data)
    sizes = [data.train.images[0].numel()]

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    for module in model.modules():
        if not any(module.children()):
            module.register_forward_hook(count)
    model.eval()(data.train.images[:1].to("cpu", torch.float32))
    activations = run.batch_size * (sum(sizes) + 4 * max(sizes))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return dtype.itemsize * (activations + 3 * parameters)
