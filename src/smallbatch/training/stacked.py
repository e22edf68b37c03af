"""The `stacked` engine: the runs of a column computed together, each in a lane of its own.

Every lane has its own weights, batch statistics, learning rate, seed and outcome, and gets the
numbers that :mod:`smallbatch.training.loop` would get, but for the rounding of sums that are taken
in another order. No operation mixes lanes, and none depends on how many there are: a lane's result
is bit for bit the same whichever lanes are computed beside it.
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
from smallbatch.training.checkpoints import Keeper, KeepNothing, State
from smallbatch.training.engines import has_layers
from smallbatch.training.lane_inputs import Feed, Rates
from smallbatch.training.lane_vmap import VmapNet
from smallbatch.training.lanes import Lanes, stack_lanes
from smallbatch.training.loop import Row, RunResult, arithmetic, initial_model
from smallbatch.training.protocol import Run, updates_after
from smallbatch.training.resident import Resident, Split
from smallbatch.training.stacked_models import StackedNet

EVAL_PIXELS = 4096  # pixels (of all examples together) in one forward pass of an evaluation

EpochObserver = Callable[[Run, Row], None]
EndObserver = Callable[[Run, RunResult, float], None]


def train_lanes(
    runs: Sequence[Run],
    data: Resident,
    *,
    dtype: torch.dtype = torch.float32,
    on_epoch: EpochObserver = lambda *_: None,
    on_end: EndObserver = lambda *_: None,
    keeper: Keeper | None = None,
) -> list[RunResult]:
    """Train runs of one column together.

    Args:
        runs: of one study and batch size.
        data: the resident data set; its device and dtype are the runs'.
        dtype: of the weights; float64 is for tests of exactness.
        on_epoch: called with each run's row as an epoch ends.
        on_end: called as a run ends, with its share of the seconds; a diverged run ends at once.
        keeper: of the lanes' checkpoints; ``runs`` are then those that its checkpoint holds.

    Returns:
        The results in the order of ``runs``.

    Raises:
        Stopping: the keeper asked for an end.
    """
    device = data.train.images.device
    study = runs[0].settings
    if any((run.settings, run.batch_size) != (study, runs[0].batch_size) for run in runs):
        raise ValueError("the lanes of a column share their study and batch size")
    with torch.no_grad(), arithmetic(study.precision, device):
        trainer = _Trainer(runs, data, dtype, on_epoch, on_end, keeper or KeepNothing())
        trainer.run()
    return [trainer.results[run] for run in runs]


class _Trainer:
    def __init__(
        self,
        runs: Sequence[Run],
        data: Resident,
        dtype: torch.dtype,
        on_epoch: EpochObserver,
        on_end: EndObserver,
        keeper: Keeper,
    ) -> None:
        self.keeper, self.update = keeper, 0
        self.runs = list(runs)
        self.data, self.on_epoch, self.on_end = data, on_epoch, on_end
        self.clock, self.share = time.perf_counter(), 0.0
        self.device = data.train.images.device
        builders = [partial(initial_model, run, data) for run in runs]
        plain = not has_layers(runs[0].settings.model)
        self.lanes, self.model = stack_lanes(builders, self.device, dtype, plain)
        self.net = (VmapNet if plain else StackedNet)(self.lanes, self.model)
        self.loss = torch.zeros(len(runs), device=self.device, dtype=torch.float64)
        self.correct = torch.zeros(len(runs), device=self.device, dtype=torch.int64)
        self.seen = 0
        self.rows: dict[Run, list[Row]] = {run: [] for run in runs}
        self.results: dict[Run, RunResult] = {}

    def run(self) -> None:
        """Train until every lane has finished or diverged."""
        self.keeper.begin(self)
        run, study, n = self.runs[0], self.runs[0].settings, len(self.data.train)
        updates = updates_after(study.epochs, n, run.batch_size)
        feed = Feed(self.runs, self.data, self.update)
        rates = Rates(self.runs, updates, self.lanes.theta)
        while True:
            epoch = len(self.rows[self.runs[0]]) + 1
            if self.update == updates_after(epoch, n, run.batch_size):
                self._end_epoch(epoch, rates.lrs(self.update - 1))
                epoch += 1
            if self.update == updates:
                break
            images, labels = feed.next()
            self._step(images, labels, rates)
            alive = (self.last_loss.isfinite() & self.lanes.finite()).tolist()
            if not all(alive):
                self._end_diverged(alive, epoch, rates)
                if not self.runs:
                    return
                feed.keep(self.runs)
                rates = Rates(self.runs, updates, self.lanes.theta)
            self.pause()
        self._end_finished()

    def pause(self) -> None:
        """Let the keeper do its work: here the state is that between two updates."""
        self.keeper.between(self)

    def state(self) -> State:
        """See :class:`~training.checkpoints.Resumable`."""
        self._share_time()
        tensors = {"theta": self.lanes.theta, "loss": self.loss, "correct": self.correct}
        tensors |= {f"statistic.{name}": value for name, value in self.lanes.statistics.items()}
        rows = {run.hash: self.rows[run] for run in self.runs}
        content = {"rows": rows, "seen": self.seen, "share": self.share}
        return State(tuple(rows), self.update, tensors, content)

    def restore(self, state: State) -> None:
        """See :class:`~training.checkpoints.Resumable`."""
        self.update, self.seen = state.update, state.content["seen"]
        self.share = state.content["share"]
        self.rows = {run: list(state.content["rows"][run.hash]) for run in self.runs}
        self.lanes.theta.copy_(state.tensors["theta"])
        self.loss.copy_(state.tensors["loss"])
        self.correct.copy_(state.tensors["correct"])
        for name, value in self.lanes.statistics.items():
            value.copy_(state.tensors[f"statistic.{name}"])

    def _step(self, images: Tensor, labels: Tensor, rates: Rates) -> None:
        logits = self.net.forward(images, training=True)
        losses, gradient = _cross_entropy(logits, labels)
        self.last_loss = losses.sum(1)
        self.loss += self.last_loss
        self.correct += (logits.argmax(1) == labels).sum(1)
        self.seen += labels.shape[1]
        self.net.backward(gradient)
        self.lanes.update(*rates.at(self.update))
        self.update += 1

    def _row(self, lane: int, epoch: int, lr: float) -> Row:
        row: Row = {
            "epoch": epoch,
            "updates": self.update,
            "lr": lr,
            "train_loss": self.loss[lane].item() / self.seen,
            "train_accuracy": self.correct[lane].item() / self.seen,
        }
        for split in ("validation", "test"):
            row |= {f"{split}_loss": math.nan, f"{split}_accuracy": math.nan}
        return row

    def _end_epoch(self, epoch: int, lrs: list[float]) -> None:
        rows = [self._row(lane, epoch, lrs[lane]) for lane in range(len(self.runs))]
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            if split is not None:
                losses, accuracies = evaluate(self.net, split, self.pause)
                for lane, row in enumerate(rows):
                    row |= {f"{name}_loss": losses[lane], f"{name}_accuracy": accuracies[lane]}
        self._share_time()
        for run, row in zip(self.runs, rows, strict=True):
            self.rows[run].append(row)
            self.on_epoch(run, row)
        self.loss.zero_()
        self.correct.zero_()
        self.seen = 0

    def _end_diverged(self, alive: list[bool], epoch: int, rates: Rates) -> None:
        """Give the lanes that are not ``alive`` their outcome and drop them."""
        self._share_time()
        lrs = rates.lrs(self.update - 1)
        for lane, run in enumerate(self.runs):
            if not alive[lane]:
                row = self._row(lane, epoch, lrs[lane])
                self.rows[run].append(row)
                self.on_epoch(run, row)
                self._finish(run, self.update, dict.fromkeys(_FINAL), {})
        kept = torch.tensor([i for i, ok in enumerate(alive) if ok], device=self.device)
        kept = kept.long()
        self.runs = [run for run, ok in zip(self.runs, alive, strict=True) if ok]
        self.lanes.keep(kept)
        self.net.clear()
        self.loss, self.correct = self.loss[kept], self.correct[kept]

    def _end_finished(self) -> None:
        """Give the remaining lanes their final metrics and weights."""
        losses, accuracies = evaluate(self.net, self.data.train, self.pause)
        norms = has_batch_norm(self.model)
        self.model.to(self.device, self.lanes.theta.dtype)
        for lane, run in enumerate(self.runs):
            last = self.rows[run][-1]
            final: dict[str, float | None] = {**dict.fromkeys(_FINAL)}
            final |= {"train_loss": losses[lane], "train_accuracy": accuracies[lane]}
            for name in ("test", "validation"):
                if name == "test" or self.data.validation is not None:
                    final |= {key: last[key] for key in (f"{name}_loss", f"{name}_accuracy")}
            weights = self.lanes.state_dict(lane)
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
            parameters=self.lanes.parameters,
            weights=weights,
        )
        self.results[run] = result
        self.on_end(run, result, self.share)

    def _share_time(self) -> None:
        # Lanes share the clock equally while they live: runs' seconds add up to the chunk's.
        now = time.perf_counter()
        self.share += (now - self.clock) / max(1, len(self.runs))
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


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (K, m) of logits (K, classes, m), and the gradient of their sum in the logits."""
    log_p = logits.log_softmax(1)
    index = labels[:, None]
    losses = -log_p.gather(1, index)[:, 0]
    minus = logits.new_full((1, 1, 1), -1.0).expand(index.shape)
    return losses, log_p.exp_().scatter_add_(1, index, minus)


def evaluate(
    net: StackedNet | VmapNet, split: Split, pause: Callable[[], None] = lambda: None
) -> tuple[list[float], list[float]]:
    """Mean cross-entropy in nats and accuracy in 0 … 1 of every lane, in evaluation mode.

    ``pause`` is called between batches.
    """
    lanes: Lanes = net.lanes
    k = len(lanes)
    loss = torch.zeros(k, dtype=torch.float64, device=lanes.theta.device)
    correct = torch.zeros(k, dtype=torch.int64, device=lanes.theta.device)
    size = max(16, EVAL_PIXELS // split.images[0, 0].numel())
    for images, labels in zip(split.images.split(size), split.labels.split(size), strict=True):
        shared = images.permute(1, 2, 3, 0).contiguous()
        logits = net.forward(shared.expand(k, *shared.shape), training=False)
        expanded = labels.expand(k, -1)
        loss -= logits.double().log_softmax(1).gather(1, expanded[:, None])[:, 0].sum(1)
        correct += (logits.argmax(1) == expanded).sum(1)
        pause()
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
