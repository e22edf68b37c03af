"""What the lanes get at each update: their examples and their learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from smallbatch.data.sampling import Examples, batches
from smallbatch.training.protocol import Run, scheduled_lr
from smallbatch.training.resident import Resident


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
    """The lanes' batches from update ``start`` on: gathered once for each seed."""

    def __init__(self, runs: Sequence[Run], data: Resident, start: int = 0) -> None:
        self.data = data
        study, m = runs[0].settings, runs[0].batch_size
        n = len(data.train)
        self.streams: dict[int, Iterator[Examples]] = {
            run.seed: batches(run.seed, n, study.epochs, m, start) for run in runs
        }
        self.keep(runs)

    def keep(self, runs: Sequence[Run]) -> None:
        """From now on serve these lanes."""
        alive = {run.seed for run in runs}
        self.streams = {seed: s for seed, s in self.streams.items() if seed in alive}
        order = {seed: i for i, seed in enumerate(self.streams)}
        device = self.data.train.images.device
        self.lane_seed = torch.tensor([order[run.seed] for run in runs], device=device)

    def next(self) -> tuple[Tensor, Tensor]:
        """Images (K, C, H, W, m) and labels (K, m) of the next update."""
        pairs = [self.data.batch(next(stream)) for stream in self.streams.values()]
        images = [batch.permute(1, 2, 3, 0) for batch, _ in pairs]
        if len(pairs) == 1:
            k = len(self.lane_seed)
            return images[0].contiguous().expand(k, -1, -1, -1, -1), pairs[0][1].expand(k, -1)
        labels = torch.stack([label for _, label in pairs])
        return torch.stack(images)[self.lane_seed], labels[self.lane_seed]
