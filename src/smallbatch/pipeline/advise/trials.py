"""Trains the cells of a step as columns, within the budget, and reads how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeAlias

from smallbatch.errors import UserError
from smallbatch.pipeline.advise.ledger import Deadline
from smallbatch.pipeline.advise.size import CANDIDATES, SEEDS, Work

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import pandas as pd
    from torch import Tensor

    from smallbatch.analysis.race import Candidate
    from smallbatch.config.params import ComputeConfig
    from smallbatch.config.study import StudyConfig
    from smallbatch.data.prepared import Dataset
    from smallbatch.execution.watch import Watch
    from smallbatch.pipeline.advise.calibrate import Speed
    from smallbatch.pipeline.advise.ledger import Ledger
    from smallbatch.placement.makers import Makers
    from smallbatch.protocol.column import Column
    from smallbatch.protocol.run import Run
    from smallbatch.records.schema import RunRecord
    from smallbatch.tracking import LiveMirror

FOLDER = Path(".smallbatch/advise")
STAGE = "advise"
"""What a column of an advice has as its stage."""

COLUMN_S = 1.0
"""Seconds of a column besides its training: processes, files."""
_LANES = 8  # of a vector, about: machines and m differ
_AT_ONCE = 16  # lanes of two vectors, which fewer runs do not fill
_CHECKPOINT_S = 20.0
_TOO_SHORT_S = 1.0  # for its speed to say anything


@dataclass(frozen=True)
class Trial:
    """How one run ended.

    Attributes:
        finished: Whether it did not diverge.
        curve: Validation accuracy after each epoch.
        train_loss: Mean loss of its last epoch's examples, as they were trained on.
        validation: Validation accuracy at the end; None if it diverged.
        test: Test accuracy at the end; None if it diverged.
        images: Training images it has seen.
        hash: The run's.
    """

    finished: bool
    curve: tuple[float, ...]
    train_loss: float | None
    validation: float | None
    test: float | None
    images: int
    hash: str


Trials: TypeAlias = "dict[float, dict[int, Trial]]"
"""Learning rate → seed → how that run ended."""


class Trainer:
    """Trains cells at one batch size at a time.

    Args:
        name: What the studies' names begin with.
        study: The settings of a training.
        data: The images.
        speeds: By batch size.
        ledger: What may be spent.
        compute: Where to train.
        signals: Knows of reasons to stop.
        mirror: Copies columns to MLflow.

    Attributes:
        logged: The folders of the columns of which no more is trained, in that order.
    """

    def __init__(
        self,
        name: str,
        study: StudyConfig,
        data: Dataset,
        speeds: Mapping[int, Speed],
        ledger: Ledger,
        compute: ComputeConfig,
        signals: Watch,
        mirror: LiveMirror,
    ) -> None:
        self.data, self.study = data, study
        self._name, self._speeds, self._ledger = name, speeds, ledger
        self._compute, self._signals, self._mirror = compute, signals, mirror
        self._slower = dict.fromkeys(speeds, 1.0)
        self._rates: dict[tuple[str, int], set[float]] = {}
        self._counted: set[str] = set()
        self._makers: list[Makers] = []
        self._environment: dict[str, Any] | None = None
        self.logged: list[Path] = []
        self._unlogged: set[tuple[str, int]] = set()

    def cost(self, m: int, runs: int, work: Work) -> float:
        """What a column costs, in seconds or images, as the budget is.

        Args:
            m: The batch size.
            runs: How many are trained.
            work: Of each run, as `Size.work` has it.
        """
        if self._ledger.by_images:
            return float(runs * work.trained)
        return self._slower[m] * cost_of(self._speeds, m, runs, work)

    def folder(self, step: str, m: int) -> Path:
        """The folder of a step's column."""
        return FOLDER / self.data.meta.name / f"{self._name}-{step}" / f"m{m}"

    def train(
        self,
        step: str,
        m: int,
        rates: Sequence[float],
        seeds: Sequence[int],
        epochs: int,
        work: Work,
        *,
        keep_weights: bool = False,
    ) -> Trials:
        """Train cells, and those of the same step and batch size before them, as one column.

        Args:
            step: The name of the step.
            m: The batch size.
            rates: η̃; under AdamW η.
            seeds: Of each; the same at every call of a step.
            epochs: Of a training.
            work: Of each run, as `Size.work` has it.
            keep_weights: Whether the weights are kept, and the best run's are logged as a model.

        Returns:
            The trials of these cells.

        Raises:
            OutOfBudget: The time was spent before they had ended.
            Stopped: By a signal.
            UserError: The model cannot be trained on these images.
        """
        from smallbatch import machine
        from smallbatch.execution.column import train_column
        from smallbatch.placement.placement import place
        from smallbatch.protocol.column import plan_column

        together = self._rates.setdefault((step, m), set()) | set(rates)
        settings = self.study.model_copy(update={"epochs": epochs})
        column = plan_column(
            f"{self._name}-{step}", settings, self.data,
            batch_size=m, base_lrs=sorted(together), seeds=list(seeds),
        )  # fmt: skip
        directory = self.folder(step, m)
        placement = place(column, self._compute)
        if placement.makers not in self._makers:
            self._makers.append(placement.makers)
        if self._environment is None:
            self._environment = machine.describe(placement.device)
        work_folder = FOLDER / ("runs" if keep_weights else "runs-without-weights")
        # What an earlier attempt has trained is read, however late it is.
        is_kept = all((work_folder / run.hash / "record").exists() for run in column.runs)
        deadline = Deadline(self._signals, self._ledger)
        news, began = _News(), perf_counter()
        try:
            train_column(
                column,
                directory,
                placement=placement,
                checkpoint_seconds=_CHECKPOINT_S,
                work=work_folder,
                observers=[news],
                stage=STAGE,
                environment=self._environment,
                watch=self._signals if is_kept else deadline,
                keep_weights=keep_weights,
            )
        finally:
            self._ledger.save()
        self._rates[step, m] = together
        self._unlogged.add((step, m))
        trials = read_trials(directory)
        self._learn(column, trials, news, perf_counter() - began, work)
        if not trials.keys() >= set(rates):
            raise UserError(f"{directory}: another command wrote to it meanwhile; try again")
        return {rate: trials[rate] for rate in rates}

    def log(self, step: str, m: int) -> None:
        """Let MLflow have a step's column, of which no more is trained."""
        self._unlogged.discard((step, m))
        self.logged.append(self.folder(step, m))
        self._mirror.finish_later(self.logged[-1])

    def log_all(self) -> None:
        """Let MLflow have also the columns of steps that the budget ended."""
        for step, m in sorted(self._unlogged):
            self.log(step, m)

    def kept(
        self, candidate: Candidate, seed: int, epochs: int
    ) -> tuple[Run, dict[str, Tensor]] | None:
        """A run whose weights were kept, and these; None if they are gone."""
        from smallbatch.protocol.column import plan_column
        from smallbatch.records.files import load_record

        settings = self.study.model_copy(update={"epochs": epochs})
        column = plan_column(
            self._name, settings, self.data,
            batch_size=candidate.batch_size, base_lrs=[candidate.base_lr], seeds=[seed],
        )  # fmt: skip
        (run,) = column.runs
        for makers in self._makers:
            if kept := load_record(FOLDER / "runs" / run.hash, makers):
                return (run, kept.result.weights) if kept.result.weights else None
        return None

    def _learn(
        self, column: Column, trials: Trials, news: _News, seconds: float, work: Work
    ) -> None:
        """Count the images, and how much slower than expected it was."""
        runs = {trial.hash: trial for of_rate in trials.values() for trial in of_rate.values()}
        new = {name: it for name, it in runs.items() if name not in self._counted}
        self._counted |= set(new)
        self._ledger.images += sum(it.images for it in new.values())
        if not news.begun or seconds < _TOO_SHORT_S:
            return
        # What diverged was trained, and evaluated, for less.
        planned = column.updates(column.runs[0]) * column.batch_size * len(news.begun)
        share = sum(runs[name].images for name in news.begun) / max(1, planned)
        done = Work(round(share * work.trained), round(share * work.evaluated))
        expected = cost_of(self._speeds, column.batch_size, len(news.begun), done)
        ratio = min(5.0, max(0.2, seconds / expected))
        self._slower[column.batch_size] = (self._slower[column.batch_size] + ratio) / 2


def cost_of(speeds: Mapping[int, Speed], m: int, runs: int, work: Work) -> float:
    """Seconds of a column of some runs at m.

    Evaluation has large batches of its own, at every m, and takes a third of the time of training
    on as many images.
    """
    fewer = 1.0
    if speeds[m].by_vectors and runs < _AT_ONCE:  # lanes that are not there take as long
        measured = SEEDS * CANDIDATES
        fewer = max(1.0, measured / max(runs, _LANES / 2))
    best = max(speed.images_per_second for speed in speeds.values())
    each = work.trained / speeds[m].images_per_second + work.evaluated / (3 * best)
    return COLUMN_S + fewer * runs * each


class _News:
    """Notes which runs are trained now; see :class:`~execution.column.Observer`."""

    def __init__(self) -> None:
        self.begun: set[str] = set()

    def run_begun(self, run: Run, started: datetime) -> None:  # noqa: ARG002 - the protocol's
        self.begun.add(run.hash)

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        """Do nothing: a step is told of when it ends."""

    def run_done(self, run: Run, outcome: str) -> None:
        """Do nothing likewise."""


def read_trials(directory: Path) -> Trials:
    """How the runs of a column ended."""
    from smallbatch.records.columns import read_column

    files = read_column(directory)
    rows = dict(iter(files.history.sort_values("epoch").groupby("run")))
    trials: Trials = {}
    for run in files.record.runs:
        trials.setdefault(run.base_lr, {})[run.seed] = _trial(
            run, rows[run.run], files.record.batch_size
        )
    return trials


def _trial(run: RunRecord, rows: pd.DataFrame, batch_size: int) -> Trial:
    finished = run.outcome == "finished"
    return Trial(
        finished=finished,
        curve=tuple(map(float, rows["validation_accuracy"].dropna())),
        train_loss=float(rows["train_loss"].iloc[-1]) if finished else None,
        validation=run.final["validation_accuracy"] if finished else None,
        test=run.final["test_accuracy"] if finished else None,
        images=int(rows["updates"].iloc[-1]) * batch_size,
        hash=run.run,
    )
