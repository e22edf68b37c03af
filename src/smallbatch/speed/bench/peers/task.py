"""What every peer computes: K lanes of one batch size, their batches and rates. Needs numpy alone.

A peer is another way to compute the same updates. An update is
θ ← θ·(1 − η·λ) − η̃·(sum of the batch's gradients), η = η̃·m; a lane's running statistics, its summed
loss and its number of right answers are kept too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

WEIGHT_DECAY = 1e-4
WIDTHS = (16, 32, 64)  # the channels of ResNet-8's three blocks
NORMS = ("batch", "none")

Array = np.ndarray[Any, Any]
State = dict[str, Array]


@dataclass(frozen=True)
class Task:
    """K lanes and the examples of their updates; lanes of a seed are next to each other.

    Attributes:
        norm: ``batch`` or ``none``.
        images: float32 (N, C, H, W), normalised.
        labels: int64 (N,).
        table: int64 (updates, seeds, m), the examples of every update.
        base_lrs: float64 (K,), η̃ of every lane.
    """

    norm: str
    images: Array
    labels: Array
    table: Array
    base_lrs: Array

    @property
    def lanes(self) -> int:
        """K."""
        return len(self.base_lrs)

    @property
    def seeds(self) -> int:
        """S, a divisor of K."""
        return self.table.shape[1]

    @property
    def m(self) -> int:
        """Examples per update."""
        return self.table.shape[2]

    @property
    def decays(self) -> Array:
        """float64 (K,): 1 − η·λ."""
        return 1 - self.base_lrs * self.m * WEIGHT_DECAY

    @property
    def momentum(self) -> float:
        """Weight of the newest batch in the running statistics."""
        return 1.0 - 0.9 ** (self.m / 128)

    def seed(self, lane: int) -> int:
        """The seed of a lane's weights and batches."""
        return lane * self.seeds // self.lanes


@dataclass(frozen=True)
class Result:
    """The end of every lane: weights by torch's names and shapes, summed loss, right answers."""

    states: list[State]
    loss: Array
    right: Array


def seeds_of(lanes: int) -> int:
    """Two where the lanes come in pairs, else one."""
    return 1 if lanes % 2 else 2


def make_task(norm: str, m: int, base_lrs: Array, images: Array, labels: Array, rows: int) -> Task:
    """Two seeds where the lanes come in pairs, else one; every seed's batches go by epochs.

    Args:
        norm: ``batch`` or ``none``.
        m: Examples per update.
        base_lrs: float64 (K,), η̃ of every lane.
        images: float32 (N, C, H, W), normalised.
        labels: int64 (N,).
        rows: The number of updates whose examples are laid down.
    """
    seeds = seeds_of(len(base_lrs))
    streams = list[Array]()
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        epochs = -(-rows * m // len(labels))
        order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])
        streams.append(order[: rows * m].reshape(rows, m))
    return Task(norm, images, labels, np.stack(streams, 1), base_lrs)


def parts(task: Task, count: int) -> list[Task]:
    """The lanes of a task dealt to ``count`` tasks, which can run side by side.

    Each has lanes of one seed, unless it is the only one.

    Raises:
        ValueError: The count is not 1, or a multiple of the seeds and at most the lanes.
    """
    if count == 1:
        return [task]
    if count % task.seeds or count > task.lanes:
        raise ValueError(f"programs: found {count}; allowed: 1, or some for each seed")
    by_seed = task.base_lrs.reshape(task.seeds, -1)
    return [
        replace(task, table=task.table[:, seed : seed + 1], base_lrs=rates)
        for seed in range(task.seeds)
        for rates in np.array_split(by_seed[seed], count // task.seeds)
    ]


def most_parts(lanes: int, cores: int) -> int:
    """The largest number of parts of a task of so many lanes that is at most the cores; else 1."""
    seeds = seeds_of(lanes)
    return max(1, min(cores // seeds, lanes // seeds) * seeds)


def normalised(images: Array) -> Array:
    """Any numbers (N, C, H, W) → float32 of mean 0 and standard deviation 1 in every channel."""
    pixels = np.ascontiguousarray(images).astype(np.float32)
    mean = pixels.mean((0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    std = pixels.std((0, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)
    return (pixels - mean) / std


def drawn(norm: str, channels: int, classes: int, seed: int) -> State:
    """Initial weights of ResNet-8, float32 by torch's names and shapes.

    Of the package's distribution (He et al. 2015), from another generator: its own needs torch.
    """
    rng = np.random.default_rng(seed)
    state = State()

    def layer(name: str, shape: tuple[int, ...], bias: bool) -> None:
        std = np.sqrt(2 / np.prod(shape[1:]))
        state[f"{name}.weight"] = rng.normal(0, std, shape).astype(np.float32)
        if bias:
            state[f"{name}.bias"] = np.zeros(shape[0], np.float32)

    def conv(block: str, which: str, into: int, out: int) -> None:
        layer(f"{block}conv{which}", (out, into, 3, 3), bias=norm == "none")
        if norm == "batch":
            for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0),
                                ("running_var", 1)):  # fmt: skip
                state[f"{block}norm{which}.{part}"] = np.full(out, value, np.float32)

    conv("", "1", channels, WIDTHS[0])
    into = WIDTHS[0]
    for block, width in enumerate(WIDTHS):
        conv(f"blocks.{block}.", "1", into, width)
        conv(f"blocks.{block}.", "2", width, width)
        into = width
    layer("fc", (classes, into), bias=True)
    return state
