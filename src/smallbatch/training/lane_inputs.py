"""What the lanes get at each update: their examples and their learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from smallbatch.data.sampling import Examples, batches
from smallbatch.training.protocol import Run, scheduled_lr
from smallbatch.training.resident import Resident


class Shared(NamedTuple):
    """Images (m, C, H, W) and how many lanes, next to each other, see them."""

    images: Tensor
    lanes: int


class Rates:
    """The scheduled learning rates of K lanes as vectors."""

    def __init__(self, runs: Sequence[Run], updates: int, like: Tensor) -> None:
        self.runs, self.updates, self.like = runs, updates, like
        self.phase: float | None = None
        self.vectors = like, like

    def lrs(self, update: int) -> list[float]:
        """η of each lane at an update, from 0."""
        study = self.runs[0].settings
        return [scheduled_lr(update, self.updates, run.lr, study) for run in self.runs]

    def at(self, update: int) -> tuple[Tensor, Tensor]:
        """1 − η·λ and η̃ of each lane, (K,)."""
        study, m = self.runs[0].settings, self.runs[0].batch_size
        phase = scheduled_lr(update, self.updates, 1.0, study)
        if phase != self.phase:  # the schedule is the same factor for all
            self.phase = phase
            lrs = self.lrs(update)
            self.vectors = (
                self.like.new_tensor([1 - lr * study.weight_decay for lr in lrs]),
                self.like.new_tensor([lr / m for lr in lrs]),
            )
        return self.vectors


class Feed:
    """The lanes' batches: gathered once for each seed, shared by its lanes.

    Args:
        runs: those of one seed next to each other.
        data: the resident data set.
    """

    def __init__(self, runs: Sequence[Run], data: Resident) -> None:
        self.data = data
        study, m = runs[0].settings, runs[0].batch_size
        n = len(data.train)
        self.streams: dict[int, Iterator[Examples]] = {
            run.seed: batches(run.seed, n, study.epochs, m) for run in runs
        }
        self.keep(runs)

    def keep(self, runs: Sequence[Run]) -> None:
        """From now on serve these lanes."""
        seeds = [run.seed for run in runs]
        self.streams = {seed: s for seed, s in self.streams.items() if seed in seeds}
        self.lanes = [seeds.count(seed) for seed in self.streams]
        if seeds != [seed for seed in self.streams for _ in range(seeds.count(seed))]:
            raise ValueError("lanes of one seed are next to each other, in the order of the first")

    def next(self) -> tuple[list[Shared], Tensor]:
        """Images of the next update, and labels (m, K)."""
        pairs = [self.data.batch(next(stream)) for stream in self.streams.values()]
        shared = [Shared(images, k) for (images, _), k in zip(pairs, self.lanes, strict=True)]
        labels = [y[:, None].expand(-1, k) for (_, y), k in zip(pairs, self.lanes, strict=True)]
        return shared, torch.cat(labels, 1)
