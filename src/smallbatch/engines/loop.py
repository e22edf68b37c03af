"""The `loop` engine: one plain run after another. The other engine is tested against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from smallbatch.config.model_files import model_digest
from smallbatch.engines.batches import BatchSource, Evaluated
from smallbatch.engines.flat import FlatWeights, flat_weights
from smallbatch.engines.micro import GradientSum
from smallbatch.engines.ranks import Exchange, Ranks
from smallbatch.engines.tally import Tally
from smallbatch.errors import UserError
from smallbatch.models import build_model, has_batch_norm, recompute_population_statistics
from smallbatch.protocol.outcome import Row, RunResult
from smallbatch.protocol.run import Run
from smallbatch.protocol.schedule import scheduled_lr, updates_after
from smallbatch.records.checkpoints import Keeper, KeepNothing, State

if TYPE_CHECKING:
    from smallbatch.config.study import Precision

EVAL_BATCH = 256  # examples per forward pass of an evaluation; small enough for a CPU's cache
# Most training pixels from which exact BN statistics are computed, in one pass: 4,096 images of
# 32×32, for which ResNet-8 takes 1 GB.
POPULATION_PIXELS = 2**22
# Updates between two checks of whether the run has diverged. The check makes a GPU wait for the
# host. Updates that were made after the divergence are not counted.
LOOK_EVERY = {"cpu": 1, "cuda": 64}


def train(
    run: Run,
    data: BatchSource,
    *,
    dtype: torch.dtype = torch.float32,
    on_epoch: Callable[[Row], None] = lambda _: None,
    keeper: Keeper | None = None,
    micro_batch: int | None = None,
    ranks: Ranks | None = None,
) -> RunResult:
    """Train one run from its seed to its last update or to its divergence.

    Args:
        run: The run.
        data: The data set; its device and dtype are those of the training.
        dtype: The dtype of the weights; float64 is for tests of exactness.
        on_epoch: Called with the epoch's row at the end of each epoch.
        keeper: Keeps the run's checkpoints.
        micro_batch: Most examples that are computed at a time; None: all of a batch.
        ranks: The processes that train it together, each of which calls this function; None: this
            one alone. Only rank 0 has a keeper, and its result is the run's.

    Raises:
        Stopping: The keeper asked to stop.
        UserError: The model needs all of a batch at a time, or cannot be built.
        OthersLost: Another rank is gone.
    """
    device, ranks = data.device, ranks or Ranks()
    model = initial_model(run, data).to(device, dtype)
    part = ranks.divide(model, run.batch_size)
    weights = flat_weights(model, run.settings, run.batch_size)
    gradient = GradientSum(model, run.settings.precision, micro_batch)
    exchange = Exchange(ranks, model, (part.stop - part.start) / run.batch_size)
    with arithmetic(run.settings.precision, device):
        keeper, tally = keeper or KeepNothing(), Tally(device)
        trained = _Trainer(
            run, data, model, weights, gradient, on_epoch, keeper, tally, ranks, part, exchange
        ).run()
        final = _final_metrics(model, data, trained) if ranks.leads else {}
    return RunResult(
        outcome="finished" if trained.diverged_at is None else "diverged",
        diverged_at=trained.diverged_at,
        rows=trained.rows,
        final=final,
        parameters=weights.theta.numel(),
        weights=_weights(model) if trained.diverged_at is None else {},
    )


@dataclass
class _Trainer:
    run_: Run
    data: BatchSource
    model: nn.Module
    weights: FlatWeights
    gradient: GradientSum
    on_epoch: Callable[[Row], None]
    keeper: Keeper
    tally: Tally
    ranks: Ranks
    part: slice  # of each batch, that this rank computes
    exchange: Exchange
    update: int = 0  # updates done; after a divergence, updates up to and including it
    rows: list[Row] = field(default_factory=list)
    diverged_at: int | None = None  # as of the last look at the device

    def run(self) -> _Trainer:
        self.keeper.begin(self)
        if self.ranks.size > 1:
            self._begin_as_rank_0()
        self._end_epoch()  # a checkpoint may be of the moment before an epoch's end is recorded
        look_every = LOOK_EVERY[self.weights.theta.device.type]
        for images, labels in self._batches():
            self._step(images, labels)
            if self.update % look_every == 0:
                self._look()
            if self.diverged_at is None:
                self.pause()
            self._end_epoch()
        return self

    def _begin_as_rank_0(self) -> None:
        """Take over where rank 0 begins; it alone reads checkpoints, and thins them out."""
        state = self.state()
        on_cpu = {name: value.cpu() for name, value in state.tensors.items()}
        self.restore(self.ranks.told(replace(state, tensors=on_cpu)))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The remaining batches, until a divergence is seen."""
        run = self.run_
        epochs, m = run.settings.epochs, run.batch_size
        rest = self.data.batches(run.seed, epochs, m, self.update, self.part)
        with closing(rest):
            while self.diverged_at is None and (batch := next(rest, None)) is not None:
                yield batch

    def _step(self, images: Tensor, labels: Tensor) -> None:
        lr = self._lr(self.update)
        self.ranks.seed(self.run_.seed, self.update)
        loss, correct = self.gradient.add(images, labels)
        loss, correct = self.exchange.add(self.weights.gradient, loss, correct)
        self.weights.update(lr, self.update)
        self.update += 1
        self.tally.add(self.update, loss, correct, self.weights.finite())

    def _look(self) -> None:
        """Wait for the device and see whether the run has diverged; if so, forget later updates."""
        diverged_at = int(self.tally.diverged_at)
        if diverged_at:
            self.update = self.diverged_at = diverged_at

    def _lr(self, update: int) -> float:
        run, study = self.run_, self.run_.settings
        return scheduled_lr(update, self._updates(study.epochs), run.lr, study)

    def _end_epoch(self) -> None:
        if self.update == self._updates(len(self.rows) + 1):
            self._look()
        elif self.diverged_at is None:
            return
        self._record()
        self.tally.clear()

    def _updates(self, epochs: int) -> int:
        return updates_after(epochs, len(self.data.train), self.run_.batch_size)

    def _running(self) -> dict[str, float]:
        """Sums over this epoch's updates, and the number of images they are over."""
        loss, correct = float(self.tally.loss), float(self.tally.correct)
        updates = self.update - self._updates(len(self.rows))
        return {"loss": loss, "correct": correct, "seen": updates * self.run_.batch_size}

    def _record(self) -> None:
        running = self._running()
        row: Row = {
            "epoch": len(self.rows) + 1,
            "updates": self.update,
            "lr": self._lr(self.update - 1),
            "train_loss": running["loss"] / running["seen"],
            "train_accuracy": running["correct"] / running["seen"],
        }
        splits = {"validation": self.data.validation, "test": self.data.test}
        for name, split in splits.items():
            loss, accuracy = math.nan, math.nan
            if split is not None and self.diverged_at is None and self.ranks.leads:
                loss, accuracy = evaluate(self.model, split, self.pause, self.eval_batch)
            row |= {f"{name}_loss": loss, f"{name}_accuracy": accuracy}
        self.rows.append(row)
        self.on_epoch(row)

    @property
    def eval_batch(self) -> int:
        """Examples per forward pass of an evaluation; where memory is short, as in an update."""
        return min(EVAL_BATCH, self.gradient.size or EVAL_BATCH)

    def pause(self) -> None:
        """Let the keeper write a checkpoint or stop; called only between two updates."""
        self.keeper.between(self)

    def state(self) -> State:
        """See :class:`~records.checkpoints.Resumable`."""
        self._look()
        tensors = {"theta": self.weights.theta, **_generators(self.weights.theta.device)}
        tensors |= {f"buffer.{name}": value for name, value in self.model.named_buffers()}
        tensors |= {f"moment.{i}": value for i, value in enumerate(self.weights.moments)}
        content: dict[str, Any] = {"rows": self.rows, "running": self._running()}
        if self.diverged_at is not None:
            content["diverged_at"] = self.diverged_at
        return State((self.run_.hash,), self.update, tensors, content)

    def restore(self, state: State) -> None:
        """See :class:`~records.checkpoints.Resumable`."""
        self.update = state.update
        self.rows = list(state.content["rows"])
        running, diverged_at = state.content["running"], state.content.get("diverged_at", 0)
        self.tally.restore(running["loss"], int(running["correct"]), diverged_at)
        self._look()
        self.weights.theta.copy_(state.tensors["theta"])
        for i, value in enumerate(self.weights.moments):
            value.copy_(state.tensors[f"moment.{i}"])
        for name, value in self.model.named_buffers():
            value.copy_(state.tensors[f"buffer.{name}"])
        torch.set_rng_state(state.tensors["generator.cpu"])
        if self.weights.theta.is_cuda:
            torch.cuda.set_rng_state(state.tensors["generator.cuda"], self.weights.theta.device)


def _generators(device: torch.device) -> dict[str, Tensor]:
    """States of the random number generators, from which layers such as dropout draw."""
    states = {"generator.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["generator.cuda"] = torch.cuda.get_rng_state(device)
    return states


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Evaluated,
    pause: Callable[[], None] = lambda: None,
    batch: int = EVAL_BATCH,
) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in 0 … 1, in evaluation mode.

    ``pause`` is called between forward passes of ``batch`` examples.
    """
    model.eval()
    loss: Tensor | float = 0.0
    correct: Tensor | int = 0
    for images, labels in split.batches(batch):
        logits = model(images.clone())  # a copy, as a model may work in place
        loss += cross_entropy(logits.double(), labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
        pause()
    model.train()
    return float(loss) / len(split), int(correct) / len(split)


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Generator[None, None, None]:
    """Run a block in a study's precision: float32, TF32 matrix products, or bf16 autocast."""
    tf32 = precision == "tf32"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        # Autocast's cache is off: it would go on using the weights of the first update.
        half = precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def initial_model(run: Run, data: BatchSource, *, weights: bool = True) -> nn.Module:
    """The run's model on the CPU, initialised from its seed, for the data's images and classes.

    Args:
        run: The run.
        data: The data set.
        weights: Whether pretrained weights are read; its structure needs none.

    Raises:
        UserError: The model cannot be built for them, or pretrained weights do not fit it; or one
            of the files that decide it is not as it was when the run was planned.
    """
    # Layers that draw random numbers, such as dropout in a timm model, also use the run's seed.
    torch.manual_seed(run.seed)
    channels, height, width = data.image
    built = build_model(
        run.settings.model,
        run.settings.norm,
        num_classes=data.classes,
        in_chans=channels,
        image_size=(height, width),
        seed=run.seed,
        batch_size=run.batch_size,
        bn_batch_size=run.settings.bn_batch_size,
        pretrained=run.settings.pretrained if weights else None,
        freeze=run.settings.freeze,
    ).train()
    # Looked at afterwards, so that what was built is what the run's hash says.
    if run.model_digest and model_digest(run.settings) != run.model_digest:
        raise UserError(
            f"model: {run.settings.model!r}: its source or its weights changed since this training "
            "began; run it again"
        )
    return built


def _final_metrics(
    model: nn.Module, data: BatchSource, trained: _Trainer
) -> dict[str, float | None]:
    finished = trained.diverged_at is None
    final: dict[str, float | None] = {}
    batch, scores = trained.eval_batch, (None, None)
    if finished:
        scores = evaluate(model, data.train, trained.pause, batch)
    final["train_loss"], final["train_accuracy"] = scores
    for name, split in (("validation", data.validation), ("test", data.test)):
        for key in (f"{name}_loss", f"{name}_accuracy"):
            # As at the end of the last epoch, to the bit: elsewhere a second look may round.
            final[key] = trained.rows[-1][key] if finished and split is not None else None
    final["population_test_loss"] = final["population_test_accuracy"] = None
    if finished and has_batch_norm(model):
        kept = {name: value.clone() for name, value in model.state_dict().items()}
        # Every n-th image, not the first ones, because image folders are sorted by class.
        _, height, width = data.image
        stride = -(-len(data.train) * height * width // POPULATION_PIXELS)
        recompute_population_statistics(model, data.every(stride))
        # Nobody may stop here: a checkpoint would hold these statistics.
        scores = evaluate(model, data.test, batch=batch)
        final["population_test_loss"], final["population_test_accuracy"] = scores
        model.load_state_dict(kept)
    return final


def _weights(model: nn.Module) -> dict[str, Tensor]:
    # Parameters are views into one flat vector; to be saved, each needs memory of its own.
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
