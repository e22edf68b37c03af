"""The runs of a column, trained and evaluated by the native kernels in groups of lanes."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smallbatch.engines.lanes.native import width
from smallbatch.engines.lanes.native.algorithms import parts_of_a_batch
from smallbatch.engines.lanes.native.compile import library
from smallbatch.engines.lanes.native.memory import by_lane, by_value
from smallbatch.engines.lanes.native.network import NativeNetwork
from smallbatch.engines.lanes.native.structures import Images, Optimiser, group_of, stream_of
from smallbatch.engines.loop import initial_model
from smallbatch.engines.resident import Resident, Split
from smallbatch.protocol.optimiser import MOMENTS, constants, corrections
from smallbatch.protocol.run import Run
from smallbatch.protocol.schedule import scheduled_lr, updates_after
from smallbatch.protocol.stream import PAD, epoch_examples

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig

EVAL_PIXELS = 4096  # pixels (of all examples) in one forward pass of an evaluation
STRETCH = 0.3  # seconds of updates before control returns to the caller

_NOBODY = 1  # `diverged_at` of a place without a run, so that it counts as diverged


class _Rows(NamedTuple):
    """Parameters, statistics and the optimiser's moments: rows of lanes, or a group's numbers."""

    theta: NDArray[Any]
    statistics: NDArray[Any]
    moments: tuple[NDArray[Any], ...]


class NativeLanes:
    """K lanes, in groups that each fill the places of a vector and are trained separately.

    See :class:`~engines.lanes.trainer.Lanes`.

    Args:
        runs: The runs, all of one study and batch size.
        data: The resident data set, on the CPU.
        dtype: The dtype of the weights, float32 or float64.
        version: The version that the kernels must have, if that was decided before.
    """

    def __init__(
        self, runs: Sequence[Run], data: Resident, dtype: torch.dtype, version: str | None = None
    ) -> None:
        self.runs, self.data = list(runs), data
        self._real: type[np.floating[Any]] = np.float64 if dtype == torch.float64 else np.float32
        moments = MOMENTS[runs[0].settings.optimizer] > 0
        real = "double" if dtype == torch.float64 else "float"
        self._library = library(real, version, moments)
        self.model = initial_model(self.runs[0], data)
        image = data.image
        m = runs[0].batch_size
        self._parts = parts_of_a_batch(self.model, m, image)
        self._width = width.vector_width()
        self._size = self._width // self._parts  # lanes of a group
        self._stream, self._group_type = stream_of(self._width), group_of(self._width)
        self._network = NativeNetwork(
            self.model, m // self._parts, image, self._real, self._width, parts=self._parts
        )
        # A place gets at most its part of the test split: with more examples most would be empty.
        own = -(-len(data.test) // self._parts)
        self._evaluation = NativeNetwork(
            self.model, max(1, min(own, EVAL_PIXELS // (image[1] * image[2]))), image, self._real,
            self._width, parts=self._parts, training=False,
        )  # fmt: skip
        self.parameters = self._network.parameters
        self._template = self.model.state_dict()
        self._study = runs[0].settings
        self._updates = updates_after(self._study.epochs, len(data.train), m)
        self._set_rows(self._initial_rows())
        self._diverged_at = np.zeros(len(self.runs), np.int64)
        self.clear()
        self._streams: dict[tuple[int, int], tuple[NDArray[Any], ...]] = {}
        self._seconds = math.inf  # that an update of all groups took

    def __len__(self) -> int:
        return len(self.runs)

    def _initial_rows(self) -> _Rows:
        """Parameters and statistics of plain models initialised by the runs' seeds; no moments."""
        theta, statistics = (
            np.empty((len(self.runs), count), self._real)
            for count in (self.parameters, self._network.statistic_count)
        )
        for lane, run in enumerate(self.runs):
            state = initial_model(run, self.data).state_dict()
            for rows, places in (
                (theta, self._network.places),
                (statistics, self._network.statistics),
            ):
                for name, (start, shape) in places.items():
                    rows[lane, start : start + math.prod(shape)] = state[name].numpy().ravel()
        moments = (np.zeros_like(theta) for _ in range(MOMENTS[self._study.optimizer]))
        return _Rows(theta, statistics, tuple(moments))

    def _set_rows(self, rows: _Rows) -> None:
        """Copy the lanes' rows, (K, …) each, into the groups' vectors."""
        self._groups: list[_Rows] = []
        for start in range(0, len(rows.theta), self._size):

            def own(values: NDArray[Any], number: int = 0, start: int = start) -> NDArray[Any]:
                group = values[start : start + self._size]
                return by_value(group, self._size, self._width, number)

            moments = tuple(own(moment, 1 + i) for i, moment in enumerate(rows.moments))
            self._groups.append(_Rows(own(rows.theta), own(rows.statistics), moments))

    def _rows(self) -> _Rows:
        """Parameters, statistics and moments of all lanes, (K, …) each."""

        def joined(groups: list[NDArray[Any]], values: int) -> NDArray[Any]:
            rows = [by_lane(numbers, self._size, values) for numbers in groups]
            return np.concatenate(rows)[: len(self.runs)]

        groups, values = self._groups, self.parameters
        moments = range(MOMENTS[self._study.optimizer])
        return _Rows(
            joined([group.theta for group in groups], values),
            joined([group.statistics for group in groups], self._network.statistic_count),
            tuple(joined([group.moments[i] for group in groups], values) for i in moments),
        )

    def advance(self, first: int, last: int) -> int:
        """Do as many updates as take about STRETCH seconds."""
        updates = min(last - first, max(1, int(STRETCH / self._seconds)))
        started = time.perf_counter()
        self._train(first, updates)
        self._seconds = (time.perf_counter() - started) / updates
        return updates

    def sums(self) -> tuple[list[float], list[int], list[int]]:
        """See :class:`~engines.lanes.trainer.Lanes`."""
        return self._loss.tolist(), self._correct.tolist(), self._diverged_at.tolist()

    def clear(self) -> None:
        """See :class:`~engines.lanes.trainer.Lanes`."""
        self._loss = np.zeros(len(self.runs))
        self._correct = np.zeros(len(self.runs), np.int64)

    def _train(self, first: int, updates: int) -> None:
        examples = self._network.batch_size
        m = self._parts * examples
        tables = {
            seed: self._by_part(self._tables(seed, first * m, (first + updates) * m), examples)
            for seed in {run.seed for run in self.runs}
        }
        stretch = range(first, first + updates)
        factors = np.array([scheduled_lr(u, self._updates, 1.0, self._study) for u in stretch])
        schedule = _schedule(self._study, m, factors, first)
        for g in range(len(self._groups)):
            lanes = range(g * self._size, min((g + 1) * self._size, len(self.runs)))
            group = self._group(g)
            group.diverged_at[:] = [_NOBODY] * self._width
            for place, lane in self._places(lanes):
                run = self.runs[lane]
                group.base_lr[place] = run.base_lr
                group.lr_times_decay[place] = run.lr * run.settings.weight_decay
                group.loss[place], group.correct[place] = self._loss[lane], self._correct[lane]
                group.diverged_at[place] = self._diverged_at[lane]
            stream = self._stream_of([tables[self.runs[lane].seed] for lane in lanes])
            shared = (self._network.structure, group, self._images(self.data.train), stream)
            span = ctypes.c_int64(first), ctypes.c_int64(updates)
            table = ctypes.c_void_p(schedule.ctypes.data)
            if (optimiser := self._optimiser(g)) is None:
                self._library.train(*map(ctypes.byref, shared), table, *span)
            else:
                self._library.train_with(*map(ctypes.byref, (*shared, optimiser)), table, *span)
            for place, lane in enumerate(lanes):
                self._loss[lane], self._correct[lane] = group.loss[place], group.correct[place]
                self._diverged_at[lane] = group.diverged_at[place]

    def evaluate(
        self, split: Split, pause: Callable[[], None] = lambda: None
    ) -> tuple[list[float], list[float]]:
        """See :class:`~engines.lanes.trainer.Lanes`."""
        examples = self._evaluation.batch_size
        size = self._parts * examples
        n = len(split)
        index = np.full(-(-n // size) * size, -1, np.int32)
        index[:n] = np.arange(n)
        batches = [
            self._by_part((index[start : start + size],), examples) for start in range(0, n, size)
        ]
        losses: list[float] = []
        accuracies: list[float] = []
        for g in range(len(self._groups)):
            group = self._group(g)
            for parts in batches:
                stream = self._stream_of([parts])
                self._library.evaluate(
                    ctypes.byref(self._evaluation.structure), ctypes.byref(group),
                    ctypes.byref(self._images(split)), ctypes.byref(stream),
                )  # fmt: skip
                pause()
            losses += [value / n for value in group.loss[: self._size]]
            accuracies += [value / n for value in group.correct[: self._size]]
        return losses[: len(self)], accuracies[: len(self)]

    def keep(self, kept: Sequence[int]) -> bool:
        """Drop all lanes but these if fewer groups are then needed; else it saves nothing."""
        if -(-len(kept) // self._size) == len(self._groups):
            return False
        theta, statistics, moments = self._rows()
        self.runs = [self.runs[i] for i in kept]
        index = list(kept)
        moments = tuple(moment[index] for moment in moments)
        self._set_rows(_Rows(theta[index], statistics[index], moments))
        self._loss, self._correct = self._loss[list(kept)], self._correct[list(kept)]
        self._diverged_at = self._diverged_at[list(kept)]
        self._seconds = math.inf
        return True

    def tensors(self, lanes: Sequence[int]) -> dict[str, Tensor]:
        """Weights, statistics, the optimiser's moments and the epoch's sums of these lanes."""
        theta, statistics, moments = self._rows()
        parts = {"theta": theta, "statistics": statistics}
        parts |= {f"moment.{i}": moment for i, moment in enumerate(moments)}
        parts |= {"loss": self._loss, "correct": self._correct}
        return {name: torch.from_numpy(part[list(lanes)]) for name, part in parts.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """See :class:`~engines.lanes.trainer.Lanes`."""
        moments = range(MOMENTS[self._study.optimizer])
        self._set_rows(
            _Rows(
                tensors["theta"].numpy(),
                tensors["statistics"].numpy(),
                tuple(tensors[f"moment.{i}"].numpy() for i in moments),
            )
        )
        self._loss, self._correct = tensors["loss"].numpy(), tensors["correct"].numpy()

    def state_dict(self, lane: int) -> dict[str, Tensor]:
        """One lane as a plain model's state dict; each tensor owns its memory."""
        theta, statistics, _ = self._groups[lane // self._size]
        state = {name: value.clone() for name, value in self._template.items()}
        for numbers, places in (
            (theta, self._network.places),
            (statistics, self._network.statistics),
        ):
            own = numbers[lane % self._size :: self._size]
            for name, (start, shape) in places.items():
                value = own[start : start + math.prod(shape)].reshape(shape)
                state[name] = torch.from_numpy(value.copy())
        return state

    def _places(self, lanes: range) -> list[tuple[int, int]]:
        """The places of a group that have a run, each with its lane's number."""
        places = ((place, place % self._size) for place in range(self._width))
        return [(place, lanes[own]) for place, own in places if own < len(lanes)]

    def _stream_of(self, tables: Sequence[list[tuple[NDArray[Any], ...]]]) -> Any:
        """The examples of a group's places, from each lane's tables of its parts.

        Places without a run read the first one's examples.
        """
        stream = self._stream(pad=PAD)
        for place in range(self._width):
            part, lane = divmod(place, self._size)
            own = tables[lane if lane < len(tables) else 0][part]
            stream.index[place] = own[0].ctypes.data
            for name, table in zip(("top", "left", "flip"), own[1:], strict=False):
                getattr(stream, name)[place] = table.ctypes.data
        return stream

    @property
    def _augments(self) -> bool:
        return self.data.windows is not None

    def _group(self, g: int) -> Any:
        theta, statistics, _ = self._groups[g]
        return self._group_type(theta=theta.ctypes.data, statistics=statistics.ctypes.data)

    def _optimiser(self, g: int) -> Optimiser | None:
        """The optimiser of a group with its moments; None for plain SGD, which has none."""
        moments = [moment.ctypes.data for moment in self._groups[g].moments]
        if not moments:
            return None
        m = self._parts * self._network.batch_size
        of, decay = constants(self._study, m), m * self._study.weight_decay
        kind = list(MOMENTS).index(of.optimizer)
        return Optimiser(kind, of.beta1, of.beta2, of.eps, decay, m, *moments)

    def _images(self, split: Split) -> Images:
        images = split.images
        return Images(
            images.data_ptr(), split.labels.data_ptr(), *images.stride(), *images.shape[1:]
        )

    def _by_part(
        self, tables: tuple[NDArray[Any], ...], examples: int
    ) -> list[tuple[NDArray[Any], ...]]:
        """Split tables of whole batches into one for each part, which has ``examples`` a batch."""
        shape = (-1, self._parts, examples)
        return [
            tuple(np.ascontiguousarray(table.reshape(shape)[:, part]) for table in tables)
            for part in range(self._parts)
        ]

    def _tables(self, seed: int, start: int, stop: int) -> tuple[NDArray[Any], ...]:
        """Positions ``start`` … ``stop`` of a seed's stream: index, and with augmentation crops."""
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


def _schedule(
    study: StudyConfig, m: int, factors: NDArray[np.float64], first: int
) -> NDArray[np.float64]:
    """For each update the factor of η; with moments also AdamW's corrections, (updates, 3)."""
    if not MOMENTS[study.optimizer]:
        return factors
    corrected = np.ones((2, len(factors)))
    if study.optimizer == "adamw":
        corrected[:] = corrections(study, m, first, len(factors))
    return np.stack([factors, *corrected], 1)
