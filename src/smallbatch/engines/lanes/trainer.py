"""The `stacked` engine, which computes many runs of a column together, each in its own lane.

Every lane has its own weights, batch statistics, learning rate, seed and outcome, and no operation
mixes lanes. Results equal those of :mod:`smallbatch.engines.loop` except for rounding, as sums are
taken in another order. On a CPU the paper's models are computed by the C++ kernels of
:mod:`smallbatch.engines.lanes.native`; everything else is computed by torch and Triton.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from smallbatch.engines import loop
from smallbatch.engines.kinds import Kernels, serves
from smallbatch.engines.lanes.native.lanes import NativeLanes
from smallbatch.engines.lanes.network import has_stacked_form
from smallbatch.engines.lanes.torch.lanes import TorchLanes
from smallbatch.engines.loop import arithmetic, initial_model
from smallbatch.engines.resident import Resident, Split
from smallbatch.models import has_batch_norm, recompute_population_statistics
from smallbatch.protocol.optimiser import MOMENTS
from smallbatch.protocol.outcome import Row, RunResult
from smallbatch.protocol.run import Run
from smallbatch.protocol.schedule import scheduled_lr, updates_after
from smallbatch.records.checkpoints import Keeper, KeepNothing, State

EpochObserver = Callable[[Run, Row], None]
EndObserver = Callable[[Run, RunResult, float], None]


class Lanes(Protocol):
    """K lanes and what computes them.

    Attributes:
        runs: The runs of the lanes, in the lanes' order.
        model: A plain model of their structure.
        parameters: The number of trained parameters of one lane.
    """

    runs: list[Run]
    model: nn.Module
    parameters: int

    def __len__(self) -> int: ...

    def advance(self, first: int, last: int) -> int:
        """Do some of the updates ``first`` … ``last`` − 1, counted from 0, all of one epoch.

        Returns:
            How many were done: at least one, and few enough to return within about a second.
        """
        ...

    def sums(self) -> tuple[list[float], list[int], list[int]]:
        """Sums since `clear`, and the updates at which lanes diverged.

        Returns:
            For each lane the summed training loss in nats, the number of right answers, and the
            update, counted from 1, at which it diverged (0: it has not).
        """
        ...

    def clear(self) -> None:
        """Set the sums of losses and right answers to 0."""
        ...

    def evaluate(self, split: Split, pause: Callable[[], None]) -> tuple[list[float], list[float]]:
        """Mean cross-entropy in nats and accuracy in 0 … 1 of every lane, in evaluation mode.

        Args:
            split: The images and labels.
            pause: Called between batches.
        """
        ...

    def keep(self, kept: Sequence[int]) -> bool:
        """Drop all lanes but these.

        Returns:
            False if nothing was dropped, because dropping would cost more than it saves.
        """
        ...

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane as a plain model's state dict, on the CPU; each tensor owns its memory."""
        ...

    def tensors(self, lanes: Sequence[int]) -> dict[str, Tensor]:
        """The state of these lanes that later updates depend on."""
        ...

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over the state that `tensors` returned."""
        ...


def train_lanes(
    runs: Sequence[Run],
    data: Resident,
    *,
    dtype: torch.dtype = torch.float32,
    on_epoch: EpochObserver = lambda *_: None,
    on_end: EndObserver = lambda *_: None,
    keeper: Keeper | None = None,
    kernels: Kernels | None = None,
    by_torch: bool = False,
    native: str | None = None,
    recorded: Collection[Run] = (),
) -> list[RunResult]:
    """Train runs of one column together.

    Args:
        runs: The runs, all of one study and batch size.
        data: The resident data set; its device and dtype are those of the training.
        dtype: The dtype of the weights; float64 is for tests of exactness.
        on_epoch: Called with each run's row at the end of an epoch.
        on_end: Called when a run ends, with its share of the chunk's seconds; for a run that
            diverges this is soon after the update.
        keeper: Keeps the lanes' checkpoints; ``runs`` must be the runs of a resumed one.
        kernels: The kernels to use in place of the native ones; by default the device's.
        by_torch: Whether to leave out the native kernels.
        native: The version of the native kernels if it was decided earlier that they are used.
        recorded: The runs among ``runs`` whose results are recorded already. They train along,
            because without them the other lanes might round differently, but are not returned.

    Returns:
        The results in the order of ``runs``, without those of ``recorded``.

    Raises:
        Stopping: The keeper asked to stop.
        ValueError: The runs differ in study or batch size.
    """
    device, study = data.train.images.device, runs[0].settings
    if any((run.settings, run.batch_size) != (study, runs[0].batch_size) for run in runs):
        raise ValueError("the lanes of a column share their study and batch size")
    ordered = sorted(runs, key=lambda run: run.seed)  # lanes of a seed share their images
    with torch.no_grad(), arithmetic(study.precision, device):
        if native or (kernels is None and not by_torch and serves(study, device.type) == "native"):
            lanes = NativeLanes(ordered, data, dtype, native)
        else:
            lanes = TorchLanes(ordered, data, dtype, kernels)
        trainer = _Trainer(lanes, data, on_epoch, on_end, keeper or KeepNothing(), recorded)
        trainer.run()
    return [trainer.results[run] for run in runs if run in trainer.results]


class _Trainer:
    def __init__(
        self,
        lanes: Lanes,
        data: Resident,
        on_epoch: EpochObserver,
        on_end: EndObserver,
        keeper: Keeper,
        recorded: Collection[Run],
    ) -> None:
        self.lanes, self.data, self.keeper, self.recorded = lanes, data, keeper, recorded
        self.on_epoch, self.on_end = on_epoch, on_end
        run = lanes.runs[0]
        self.study, self.m, self.n = run.settings, run.batch_size, len(data.train)
        self.update = 0
        self.clock, self.share = time.perf_counter(), 0.0
        self.rows: dict[Run, list[Row]] = {run: [] for run in lanes.runs}
        self.results: dict[Run, RunResult] = {}

    @property
    def live(self) -> list[int]:
        """Lanes whose runs have not ended; on a GPU, ended lanes may still be computed."""
        return [i for i, run in enumerate(self.lanes.runs) if run not in self.results]

    def _updates(self, epochs: int) -> int:
        return updates_after(epochs, self.n, self.m)

    def run(self) -> None:
        """Train until every lane has finished or diverged."""
        self.keeper.begin(self)
        epoch = len(self.rows[self.lanes.runs[0]]) + 1
        while True:
            if self.update == self._updates(epoch):
                self._end_epoch(epoch)
                epoch += 1
            if self.update == self._updates(self.study.epochs):
                break
            self.update += self.lanes.advance(self.update, self._updates(epoch))
            self._end_diverged(epoch)
            if not self.live:
                return
            self.pause()
        self._end_finished()

    def pause(self) -> None:
        """Let the keeper write a checkpoint or stop; called only between two updates."""
        self.keeper.between(self)

    def state(self) -> State:
        """See :class:`~records.checkpoints.Resumable`."""
        self._share_time()
        # Finished runs are kept: under vmap the others would round differently without them.
        diverged = {run for run, result in self.results.items() if result.diverged_at is not None}
        lanes = [i for i, run in enumerate(self.lanes.runs) if run not in diverged]
        rows = {run.hash: self.rows[run] for run in (self.lanes.runs[lane] for lane in lanes)}
        content = {"rows": rows, "share": self.share}
        return State(tuple(rows), self.update, self.lanes.tensors(lanes), content)

    def restore(self, state: State) -> None:
        """See :class:`~records.checkpoints.Resumable`."""
        self.update, self.share = state.update, state.content["share"]
        order = {name: i for i, name in enumerate(state.runs)}
        index = torch.tensor([order[run.hash] for run in self.lanes.runs])
        self.rows = {run: list(state.content["rows"][run.hash]) for run in self.lanes.runs}
        self.lanes.restore({name: value[index] for name, value in state.tensors.items()})

    def _row(self, lane: int, epoch: int, updates: int, loss: float, correct: int) -> Row:
        seen = (updates - self._updates(epoch - 1)) * self.m
        total, lr = self._updates(self.study.epochs), self.lanes.runs[lane].lr
        row: Row = {
            "epoch": epoch,
            "updates": updates,
            "lr": scheduled_lr(updates - 1, total, lr, self.study),
            "train_loss": loss / seen,
            "train_accuracy": correct / seen,
        }
        for split in ("validation", "test"):
            row |= {f"{split}_loss": math.nan, f"{split}_accuracy": math.nan}
        return row

    def _end_epoch(self, epoch: int) -> None:
        losses, correct, _ = self.lanes.sums()
        rows = {i: self._row(i, epoch, self.update, losses[i], correct[i]) for i in self.live}
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            if split is not None:
                losses, accuracies = self.lanes.evaluate(split, self.pause)
                for lane, row in rows.items():
                    row |= {f"{name}_loss": losses[lane], f"{name}_accuracy": accuracies[lane]}
        self._share_time()
        for lane, row in rows.items():
            run = self.lanes.runs[lane]
            self.rows[run].append(row)
            self.on_epoch(run, row)
        self.lanes.clear()

    def _end_diverged(self, epoch: int) -> None:
        """Record the outcome of lanes that diverged, and drop them where that pays."""
        losses, correct, ends = self.lanes.sums()
        if not any(ends):
            return
        self._share_time()
        for lane in self.live:
            if ends[lane]:
                run = self.lanes.runs[lane]
                row = self._row(lane, epoch, ends[lane], losses[lane], correct[lane])
                self.rows[run].append(row)
                self.on_epoch(run, row)
                self._finish(run, ends[lane], dict.fromkeys(_FINAL), {})
        if self.live:
            self.lanes.keep(self.live)

    def _end_finished(self) -> None:
        """Record the final metrics and weights of the remaining lanes."""
        losses, accuracies = self.lanes.evaluate(self.data.train, self.pause)
        norms = has_batch_norm(model := self.lanes.model)
        for lane in self.live:
            run = self.lanes.runs[lane]
            if run in self.recorded:
                continue
            last = self.rows[run][-1]
            final: dict[str, float | None] = {**dict.fromkeys(_FINAL)}
            final |= {"train_loss": losses[lane], "train_accuracy": accuracies[lane]}
            for name in ("test", "validation"):
                if name == "test" or self.data.validation is not None:
                    final |= {key: last[key] for key in (f"{name}_loss", f"{name}_accuracy")}
            weights = self.lanes.state_dict(lane)
            if norms:
                images = self.data.train.images
                model.to(images.device, images.dtype).load_state_dict(weights)
                scores = _population_scores(model, self.data)
                final["population_test_loss"], final["population_test_accuracy"] = scores
            self._share_time()
            self._finish(run, None, final, weights)
            self.pause()

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
        # Live lanes share the time equally, so that the runs' seconds add up to those of the chunk.
        now = time.perf_counter()
        self.share += (now - self.clock) / max(1, len(self.rows) - len(self.results))
        self.clock = now


_FINAL = (
    "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss",
    "test_accuracy", "population_test_loss", "population_test_accuracy",
)  # fmt: skip


def _population_scores(model: nn.Module, data: Resident) -> tuple[float, float]:
    """Test loss and accuracy under exact batch statistics, as the loop engine computes them."""
    stride = -(-data.train.images[:, 0].numel() // loop.POPULATION_PIXELS)
    recompute_population_statistics(model, data.train.images[::stride])
    return loop.evaluate(model, data.test)


def lane_bytes(run: Run, data: Resident, dtype: torch.dtype = torch.float32) -> int:
    """Estimated memory of one lane in bytes, from a plain model's activations for one image.

    The backward pass needs every layer's output and a few more of the largest at a time. Parameters
    count as weights, moments, gradients (on a GPU all parts) and a temporary of the update.
    """
    model = initial_model(run, data, weights=False)
    sizes = [data.train.images[0].numel()]

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    for module in model.modules():
        if not any(module.children()):
            module.register_forward_hook(count)
    model.eval()(data.train.images[:1].to("cpu", torch.float32, copy=True))
    activations = run.batch_size * (sum(sizes) + 4 * max(sizes))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    copies = 3 + MOMENTS[run.settings.optimizer]
    if data.train.images.is_cuda and has_stacked_form(model):
        from smallbatch.engines.lanes.triton.convs import parts_of

        copies += parts_of(run.batch_size * data.train.images[0, 0].numel(), 16)
    return dtype.itemsize * (activations + copies * parameters)
