"""The examples and learning rates that the lanes read at each update, as tables on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smallbatch.engines.resident import Resident
from smallbatch.protocol.optimiser import coefficients
from smallbatch.protocol.run import Run
from smallbatch.protocol.schedule import scheduled_lr, updates_after
from smallbatch.protocol.stream import epoch_examples, join


class Shared(NamedTuple):
    """Batches of images, each of which several lanes see.

    Attributes:
        images: (S, m, C, H, W), one batch for each seed.
        lanes: The number of lanes that see each batch; these lanes are neighbours. The numbers add
            up to K.
        source: The index of the batch that each lane sees, int64 (K,); kernels read this.
    """

    images: Tensor
    lanes: tuple[int, ...]
    source: Tensor

    def placed(self) -> list[tuple[Tensor, slice]]:
        """Each batch (m, C, H, W) with the lanes that see it."""
        ends = [sum(self.lanes[: i + 1]) for i in range(len(self.lanes))]
        slices = [slice(end - count, end) for end, count in zip(ends, self.lanes, strict=True)]
        return list(zip(self.images, slices, strict=True))


def seen_by_all(images: Tensor, lanes: int) -> Shared:
    """One batch (m, C, H, W) that all lanes see."""
    source = torch.zeros(lanes, dtype=torch.int64, device=images.device)
    return Shared(images[None], (lanes,), source)


class Tables:
    """The batches and learning rates of an epoch, and the number of its updates done so far.

    The tables and the counter keep their places in memory from epoch to epoch, so that a captured
    step finds them: `load` overwrites the tables, `next` reads the row given by the counter, and
    the step's tail increases the counter.

    Args:
        runs: The runs, all of one study and batch size; runs of one seed are next to each other.
        data: The resident data set.
        dtype: The dtype of the learning rates.
        fused: Whether a Triton kernel gathers the images; they are then channels last in memory.

    Raises:
        ValueError: Runs of one seed are not next to each other.
    """

    def __init__(
        self, runs: Sequence[Run], data: Resident, dtype: torch.dtype, fused: bool = False
    ) -> None:
        self.data, self.fused, self.runs = data, fused, list(runs)
        self.device = data.train.images.device
        self.images = data.train.images
        if fused:
            self.images = self.images.permute(0, 2, 3, 1).contiguous()
        self.study, self.m, self.n = runs[0].settings, runs[0].batch_size, len(data.train)
        self.updates = updates_after(self.study.epochs, self.n, self.m)
        self.seeds = list(dict.fromkeys(run.seed for run in runs))
        rows = self.n // self.m + 1
        self.counter = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.examples = self._empty(rows, 4, len(self.seeds), self.m, dtype=torch.int64)
        per_update = 3 if self.study.optimizer == "adamw" else 2
        self.rates = self._empty(rows, per_update, len(runs), dtype=dtype)
        self._place()

    def _empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=self.device)

    def _place(self) -> None:
        seeds = [run.seed for run in self.runs]
        self.lanes = tuple(seeds.count(seed) for seed in self.seeds)
        if seeds != [seed for seed in self.seeds for _ in range(seeds.count(seed))]:
            raise ValueError("lanes of one seed are next to each other, in the order of the first")
        source = [i for i, count in enumerate(self.lanes) for _ in range(count)]
        self.source = torch.tensor(source, device=self.device)

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all lanes but these, given in increasing order; the epoch goes on."""
        self.runs = [self.runs[i] for i in kept]
        seeds = {run.seed for run in self.runs}
        columns = [i for i, seed in enumerate(self.seeds) if seed in seeds]
        self.seeds = [seed for seed in self.seeds if seed in seeds]
        self.examples = self.examples[:, :, columns].contiguous()
        self.rates = self.rates[:, :, list(kept)].contiguous()
        self._place()

    def load(self, update: int) -> tuple[int, int]:
        """Fill the tables for the epoch of an update; the counter then points to that update.

        Args:
            update: The number of the update in the run, from 0.

        Returns:
            The epoch's first update, and the one after its last.
        """
        epoch = -(-(update + 1) * self.m // self.n)
        first, last = (updates_after(e, self.n, self.m) for e in (epoch - 1, epoch))
        rows, used = last - first, (last - first) * self.m
        rest = (epoch - 1) * self.n - first * self.m  # examples left of the epoch before
        for column, seed in enumerate(self.seeds):
            stream = epoch_examples(seed, epoch - 1, self.n)
            if rest:
                stream = join(epoch_examples(seed, epoch - 2, self.n)[self.n - rest :], stream)
            fields = (stream.index, stream.top, stream.left, stream.flip)
            table = np.stack([f[:used].reshape(rows, self.m) for f in fields], 1).astype(np.int64)
            self.examples[:rows, :, column].copy_(torch.from_numpy(table))
        self.rates[:rows].copy_(torch.from_numpy(self._schedule(first, last)))
        self.counter.fill_(update - first)
        return first, last

    def _schedule(self, first: int, last: int) -> np.ndarray:
        """The numbers of every update and lane, (updates, 2 or 3, K), as in the loop engine."""
        factors = [scheduled_lr(u, self.updates, 1.0, self.study) for u in range(first, last)]
        lrs = np.array(factors).reshape(-1, 1) * np.array([run.lr for run in self.runs])
        return coefficients(self.study, self.m, lrs, first)

    def lr(self, lane: int, update: int) -> float:
        """η of a lane at an update, counted from 0."""
        return scheduled_lr(update, self.updates, self.runs[lane].lr, self.study)

    def next(self) -> tuple[Shared, Tensor]:
        """The images of the current update and their labels (S, m)."""
        images, labels = self._gather()
        shared = Shared(images.unflatten(0, (-1, self.m)), self.lanes, self.source)
        return shared, labels.view(-1, self.m)

    def _gather(self) -> tuple[Tensor, Tensor]:
        """Images (S·m, C, H, W), augmented as in `Resident.batch`, and labels (S·m,)."""
        train, windows = self.data.train, self.data.windows
        if self.fused:
            from smallbatch.engines.lanes.triton.inputs import gathered

            augment = windows is not None
            images, labels = gathered(
                self.examples, self.images, train.labels, self.counter, augment
            )
            return images.permute(0, 3, 1, 2), labels
        index, top, left, flip = self.examples.index_select(0, self.counter)[0].flatten(1)
        if windows is None:
            images = self.images.index_select(0, index)
        else:
            crops = windows[index, :, top, left]
            images = torch.where(flip.bool()[:, None, None, None], crops.flip(3), crops)
        return images.contiguous(), train.labels.index_select(0, index)
