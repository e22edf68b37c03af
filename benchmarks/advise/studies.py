"""Committed studies as what a race would have seen of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from smallbatch.analysis.frames import load_results, on_bn_axis
from smallbatch.analysis.race import Candidate, Progress
from smallbatch.analysis.seeds import seed_array

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import pandas as pd

    from smallbatch.analysis.race import Standing
    from smallbatch.analysis.seeds import Floats, SeedArray


@dataclass(frozen=True)
class Study:
    """A study whose every run was recorded epoch by epoch.

    Attributes:
        results: The folder it is from.
        runs: One row per run, as `load_results` makes them.
        history: One row per run and epoch.
    """

    results: str
    runs: pd.DataFrame
    history: pd.DataFrame

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.runs["study"].iloc[0])

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / float(self.runs["classes"].iloc[0])

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return int(self.runs["seed"].nunique())

    def images(self, split: str) -> int:
        """The number of images of a split."""
        return int(self.runs[f"n_{split}"].iloc[0])

    @cached_property
    def epochs(self) -> int:
        """The epochs of a run."""
        return int(self.history.loc[self.history["outcome"] == "finished", "epoch"].max())

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every cell, by m and η̃."""
        return tuple(sorted(self._rows))

    @cached_property
    def below_the_edge(self) -> tuple[Candidate, ...]:
        """At each m the cells below the lowest η̃ at which a seed diverged."""
        edge: dict[int, float] = {}
        for it, rows in self._rows.items():
            if any(row["outcome"] == "diverged" for row in rows.values()):
                edge[it.batch_size] = min(it.base_lr, edge.get(it.batch_size, math.inf))
        return tuple(it for it in self.candidates if it.base_lr < edge.get(it.batch_size, math.inf))

    def at(self, candidates: Sequence[Candidate], share: float) -> Standing:
        """Where candidates stand after a share of the training: at the end of the nearest epoch.

        A run's accuracy is that of the epoch on the validation split, at the end of the training
        the reported accuracy.
        """
        epoch = self.epoch(share)
        return {
            it: {seed: self._progress(row, epoch) for seed, row in self._rows[it].items()}
            for it in candidates
        }

    def epoch(self, share: float) -> int:
        """The epoch nearest to a share of the training, at least the first."""
        return max(round(share * self.epochs), 1)

    @cached_property
    def tested(self) -> SeedArray:
        """The reported test accuracies."""
        return seed_array(self.runs)

    def test_accuracies(self, candidate: Candidate) -> Floats:
        """The reported test accuracy at each seed (S,)."""
        array = self.tested
        (row,) = (array.batch_sizes == candidate.batch_size).nonzero()[0]
        (column,) = (array.columns == candidate.base_lr).nonzero()[0]
        found: Floats = array.values[row, column]
        return found

    @cached_property
    def _rows(self) -> dict[Candidate, dict[int, dict[str, object]]]:
        rows: dict[Candidate, dict[int, dict[str, object]]] = {}
        for row in self.runs.to_dict("records"):
            candidate = Candidate(int(row["batch_size"]), float(row["base_lr"]))
            rows.setdefault(candidate, {})[int(row["seed"])] = {str(k): v for k, v in row.items()}
        return rows

    @cached_property
    def _epochs(self) -> dict[object, dict[int, tuple[int, float]]]:
        """Run → epoch → updates so far and validation accuracy."""
        return {
            run: {
                int(epoch): (int(updates), float(accuracy))
                for epoch, updates, accuracy in zip(
                    rows["epoch"], rows["updates"], rows["validation_accuracy"], strict=True
                )
            }
            for run, rows in self.history.groupby("run")
        }

    def _progress(self, row: dict[str, object], epoch: int) -> Progress:
        epochs = self._epochs[row["run"]]
        m, last = int(str(row["batch_size"])), max(epochs)
        if row["outcome"] == "diverged" and last <= epoch:
            return Progress(None, epochs[last][0] * m)
        updates, accuracy = epochs[epoch]
        if epoch == self.epochs:
            accuracy = float(str(row["reported_validation_accuracy"]))
        return Progress(accuracy, updates * m)


def studies(folders: Iterable[Path]) -> tuple[list[Study], dict[str, str]]:
    """The studies of result folders whose runs have rungs; of all others, why not."""
    found: list[Study] = []
    left_out: dict[str, str] = {}
    for folder in folders:
        if not (folder / "models").is_dir():
            left_out[folder.name] = "holds no accuracies per epoch"
            continue
        loaded = load_results(folder / "models")
        for name, runs in loaded.runs.groupby("study"):
            history = loaded.history[loaded.history["study"] == name]
            if why := _unfit(runs, history):
                left_out[f"{folder.name}: {name}"] = why
            else:
                found.append(Study(folder.name, runs, history))
    return found, left_out


def _unfit(runs: pd.DataFrame, history: pd.DataFrame) -> str:
    finished = history[history["outcome"] == "finished"]
    lengths = finished.groupby("run")["epoch"].max()
    if on_bn_axis(runs).any():
        return "its candidates differ in the batch of batch norm as well"
    if finished["validation_accuracy"].isna().any():
        return "has no validation split"
    if lengths.nunique() != 1:
        few = int(lengths.min())
        return f"has runs of {few} to {lengths.max()} epochs, and accuracies only after each epoch"
    return ""
