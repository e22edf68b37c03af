"""The runs of a column as groups of lanes, trained and evaluated by the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from smallbatch.data.sampling import PAD, epoch_examples
from smallbatch.training.native.compile import LANES, library
from smallbatch.training.native.network import NativeNetwork, aligned
from smallbatch.training.native.structures import Images, group_of, stream_of
from smallbatch.training.protocol import Run
from smallbatch.training.resident import Resident, Split

EVAL_PIXELS = 4096  # pixels (of all examples together) in one forward pass of an evaluation

_Stream, _Group = stream_of(LANES), group_of(LANES)
_NOBODY = 1  # `diverged_at` of a place that no run has


class NativeLanes:
    """K lanes of one architecture in groups of :data:`LANES`, each group a training of its own.

    Attributes:
        runs: of the lanes, in their order.
        loss: summed training loss of each lane since :meth:`reset`, in nats, float64 (K,).
        correct: training examples classified correctly since then, int64 (K,).
        diverged_at: update at which a lane's loss or weights ceased to be finite, counted from 1;
            0 while it lives, int64 (K,).
        parameters: trained parameters of one lane.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        data: Resident,
        dtype: torch.dtype,
        build: Callable[[Run], nn.Module],
    ) -> None:
        self.runs, self.data = list(runs), data
        self._real: type[np.floating[Any]] = np.float64 if dtype == torch.float64 else np.float32
        self._library = library("double" if dtype == torch.float64 else "float")
        self.model = build(self.runs[0])
        image = tuple(data.train.images.shape[1:])
        self._network = NativeNetwork(self.model, runs[0].batch_size, image, self._real)
        pixels = image[1] * image[2]
        self._evaluation = NativeNetwork(
            self.model, max(1, EVAL_PIXELS // pixels), image, self._real, training=False
        )
        self.parameters = self._network.parameters
        self._template = self.model.state_dict()
        theta, statistics = (
            np.empty((len(self.runs), count), self._real)
            for count in (self.parameters, self._network.statistic_count)
        )
        for lane, run in enumerate(self.runs):
            state = (self.model if lane == 0 else build(run)).state_dict()
            for row, places in ((theta, self._network.places), (statistics, self._network.statistics)):
                for name, (start, shape) in places.items():
                    row[lane, start : start + int(np.prod(shape))] = state[name].numpy().ravel()
        self._load(theta, statistics)
        self.reset()
        self.diverged_at = np.zeros(len(self.runs), np.int64)
        self._streams: dict[tuple[int, int], tuple[NDArray[Any], ...]] = {}

    def __len__(self) -> int:
        return len(self.runs)

    def _load(self, theta: NDArray[Any], statistics: NDArray[Any]) -> None:
        """Deal rows (K, …) out to the groups' vectors."""
        self._groups: list[tuple[NDArray[Any], NDArray[Any]]] = []
        for start in range(0, len(theta), LANES):
            pair: list[NDArray[Any]] = []
            for rows in (theta, statistics):
                vectors = aligned(rows.shape[1] * LANES, self._real).reshape(-1, LANES)
                part = rows[start : start + LANES]
                vectors[:, : len(part)] = part.T
                vectors[:, len(part) :] = part[:1].T
                pair.append(vectors)
            self._groups.append((pair[0], pair[1]))

    def _rows(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Parameters and statistics of all lanes, (K, …) each."""
        k = len(self.runs)
        theta, statistics = (
            np.concatenate([group[i].T for group in self._groups])[:k] for i in range(2)
        )
        return theta, statistics

    def reset(self) -> None:
        """Begin to sum losses and hits anew."""
        self.loss = np.zeros(len(self.runs))
        self.correct = np.zeros(len(self.runs), np.int64)

    def train(self, first: int, updates: int, factors: NDArray[np.float64]) -> None:
        """Do ``updates`` updates from number ``first``, counted from 0.

        Args:
            first: of the updates.
            updates: how many.
            factors: the schedule's multiple of η for every update of the training, float64.
        """
        m = self._network.batch_size
        tables = {
            seed: self._tables(seed, first * m, (first + updates) * m)
            for seed in {run.seed for run in self.runs}
        }
        for g in range(len(self._groups)):
            lanes = range(g * LANES, min((g + 1) * LANES, len(self.runs)))
            group = self._group(g)
            for place, lane in enumerate(lanes):
                run = self.runs[lane]
                group.base_lr[place] = run.base_lr
                group.lr_decay[place] = run.lr * run.settings.weight_decay
                group.loss[place], group.correct[place] = self.loss[lane], self.correct[lane]
                group.diverged_at[place] = self.diverged_at[lane]
            for place in range(len(lanes), LANES):
                group.diverged_at[place] = _NOBODY
            stream = _stream([tables[self.runs[lane].seed] for lane in lanes], self._augments)
            self._library.train(
                ctypes.byref(self._network.structure), ctypes.byref(group),
                ctypes.byref(self._images(self.data.train)), ctypes.byref(stream),
                ctypes.c_void_p(factors.ctypes.data), ctypes.c_int64(first),
                ctypes.c_int64(updates),
            )  # fmt: skip
            for place, lane in enumerate(lanes):
                self.loss[lane], self.correct[lane] = group.loss[place], group.correct[place]
                self.diverged_at[lane] = group.diverged_at[place]

    def evaluate(self, split: Split) -> tuple[list[float], list[float]]:
        """Mean cross-entropy in nats and accuracy in 0 … 1 of every lane, in evaluation mode."""
        size = self._evaluation.batch_size
        n = len(split)
        index = np.full(-(-n // size) * size, -1, np.int32)
        index[:n] = np.arange(n)
        losses: list[float] = []
        accuracies: list[float] = []
        for g in range(len(self._groups)):
            group = self._group(g)
            for start in range(0, n, size):
                stream = _stream([(index[start:],)], augment=False)
                self._library.evaluate(
                    ctypes.byref(self._evaluation.structure), ctypes.byref(group),
                    ctypes.byref(self._images(split)), ctypes.byref(stream),
                )  # fmt: skip
            losses += [value / n for value in group.loss]
            accuracies += [value / n for value in group.correct]
        return losses[: len(self)], accuracies[: len(self)]

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all lanes but these and close the gaps."""
        theta, statistics = self._rows()
        self.runs = [self.runs[i] for i in kept]
        self._load(theta[kept], statistics[kept])
        self.loss, self.correct = self.loss[kept], self.correct[kept]
        self.diverged_at = self.diverged_at[kept]

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane as a plain model's state dict, each tensor owning its memory."""
        theta, statistics = self._groups[lane // LANES]
        state = {name: value.clone() for name, value in self._template.items()}
        for values, places in (
            (theta, self._network.places),
            (statistics, self._network.statistics),
        ):
            for name, (start, shape) in places.items():
                own = values[start : start + int(np.prod(shape)), lane % LANES].reshape(shape)
                state[name] = torch.from_numpy(own.copy())
        return state

    @property
    def _augments(self) -> bool:
        return self.data.windows is not None

    def _group(self, g: int) -> Any:
        theta, statistics = self._groups[g]
        return _Group(theta=theta.ctypes.data, statistics=statistics.ctypes.data)

    def _images(self, split: Split) -> Images:
        images = split.images
        return Images(
            images.data_ptr(), split.labels.data_ptr(), *images.stride(), *images.shape[1:]
        )

    def _tables(self, seed: int, start: int, stop: int) -> tuple[NDArray[Any], ...]:
        """Positions ``start`` … ``stop`` of a seed's stream: index, and crops and flips if wanted."""
        n = len(self.data.train)
        epochs = range(start // n, -(-stop // n))
        for epoch in epochs:
            if (seed, epoch) not in self._streams:
                e = epoch_examples(seed, epoch, n)
                crops = (e.top, e.left, e.flip) if self._augments else ()
                self._streams[seed, epoch] = (
                    e.index.astype(np.int32),
                    *(table.astype(np.int8) for table in crops),
                )
        for key in [key for key in self._streams if key[1] < epochs.start]:
            del self._streams[key]
        parts = [self._streams[seed, epoch] for epoch in epochs]
        begin = start - epochs.start * n
        return tuple(
            np.ascontiguousarray(np.concatenate(table)[begin : begin + stop - start])
            for table in zip(*parts, strict=True)
        )


def _stream(tables: Sequence[tuple[NDArray[Any], ...]], augment: bool) -> Any:
    """Tables of a group's lanes; places without a run see what the first lane sees."""
    stream = _Stream(pad=PAD)
    for place in range(LANES):
        own = tables[place] if place < len(tables) else tables[0]
        stream.index[place] = own[0].ctypes.data
        if augment:
            stream.top[place], stream.left[place], stream.flip[place] = (
                table.ctypes.data for table in own[1:]
            )
    return stream
