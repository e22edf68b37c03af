"""The peers' tasks, their images, and how a result is judged and timed. Without torch.

What a task is, `smallbatch.speed.bench.peers.task` says; a peer is another way to compute its
updates, see `peers_torch` and `peers_jax`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.speed.bench.peers.task import WEIGHT_DECAY as WEIGHT_DECAY
from smallbatch.speed.bench.peers.task import WIDTHS as WIDTHS
from smallbatch.speed.bench.peers.task import Array as Array
from smallbatch.speed.bench.peers.task import Result as Result
from smallbatch.speed.bench.peers.task import State as State
from smallbatch.speed.bench.peers.task import Task as Task
from smallbatch.speed.bench.peers.task import make_task as make_task
from smallbatch.speed.bench.peers.task import normalised

CLASSES = 10
TAME = 2.0**-14  # a base learning rate at which nothing diverges
MOST_ROWS = 25_000  # updates whose examples are laid down in advance
CHECKED_UPDATES, CHECKED_M = 20, 8
CHECKED_BASE_LRS = (2.0**-9, 2.0**-7)
# An activation within rounding of 0 may be clipped in one way to compute and not in another. On 8×8
# noise that leaves float32 below 1e-3 here. On 32×32 noise with batch norm it does not: at 2^-7
# plain float32 PyTorch deviates by 8e-2, and float64 from weights moved by 6e-8 by up to 3e-2. The
# limit is not met by right results either; `plain` is then the number to compare with.
LIMIT = 1e-2


def timed_task(norm: str, m: int, lanes: int, images: Array, labels: Array) -> Task:
    """A different tame rate in every lane, and the examples of an epoch."""
    base_lrs = TAME * (1 + np.arange(lanes) / lanes)
    return make_task(norm, m, base_lrs, images, labels, max(1, min(MOST_ROWS, len(labels) // m)))


def checked_task(norm: str, images: Array, labels: Array) -> Task:
    """Four lanes, two seeds by two rates at which lanes learn, and one epoch of few images."""
    n = CHECKED_UPDATES * CHECKED_M
    base_lrs = np.array(CHECKED_BASE_LRS * 2)
    return make_task(norm, CHECKED_M, base_lrs, images[:n], labels[:n], CHECKED_UPDATES)


def compare(found: Result, starts: list[State], expected: Result) -> dict[str, Any]:
    """The worst lane's ‖θ − θ64‖ / ‖θ64 − θ0‖, of parameters and of running statistics apart.

    The loss's deviation is relative; right answers differ by a number of examples.
    """
    worst = {"deviation": 0.0, "statistics_deviation": 0.0}
    for state, start, end in zip(found.states, starts, expected.states, strict=True):
        for kind in worst:
            names = [n for n in end if ("running" in n) == (kind != "deviation")]
            if names:
                ours, begin, exact = (
                    np.concatenate([np.asarray(s[n], np.float64).ravel() for n in names])
                    for s in (state, start, end)
                )
                error = np.linalg.norm(ours - exact) / np.linalg.norm(exact - begin)
                # Not max(), which loses a NaN.
                worst[kind] = float(np.maximum(worst[kind], error))
    return worst | {
        "loss_deviation": float(np.max(np.abs(found.loss - expected.loss) / expected.loss)),
        "right_difference": int(np.max(np.abs(found.right - expected.right))),
        "limit": LIMIT,
        "passed": bool(worst["deviation"] <= LIMIT and worst["statistics_deviation"] <= LIMIT),
    }


def median_seconds(call: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """Seconds of one call that is already warm: the median of three stretches of `seconds` / 3."""
    took, calls = 0.0, 1
    while True:  # until a stretch is long enough to tell how many calls fill a third
        took = _stretch(call, wait, calls)
        if took >= seconds / 15:
            break
        calls *= 4
    calls = max(1, round(seconds / 3 / (took / calls)))
    return sorted(_stretch(call, wait, calls) / calls for _ in range(3))[1]


def _stretch(call: Callable[[], object], wait: Callable[[], object], calls: int) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return time.perf_counter() - start


def load(path: Path | None, toy: bool) -> tuple[Array, Array]:
    """Images, float32 (N, 3, H, W), normalised by channel, and labels, int64 (N,).

    Args:
        path: npz of `images`, uint8 (N, H, W, 3) or (N, 3, H, W), and `labels`; noise without.
        toy: few and small images.
    """
    if path is None:
        rng, (n, size) = np.random.default_rng(0), ((160, 8) if toy else (50_000, 32))
        images: Array = rng.integers(0, 256, (n, 3, size, size), np.uint8)
        labels: Array = rng.integers(0, CLASSES, n)
    else:
        with np.load(path) as arrays:
            images, labels = arrays["images"], arrays["labels"]
        if images.shape[1] != 3:
            images = np.moveaxis(images, 3, 1)
        if toy:
            images, labels = images[:160, :, :8, :8], labels[:160]
    return normalised(images), labels.astype(np.int64)
