"""How the variance of one update grows with the batch size, measured along training.

An update in the sum form is η̃·Σ∇L_i over m examples (paper, eq. 5). At fixed η̃ and fixed weights
its variance over the choice of the batch is η̃²·m times that of one example's gradient, whatever
the net: at the first weights the measurement checks itself. What the paper uses is that this goes
on in training, where each m has weights of its own.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from smallbatch.engines.flat import FlatSGD
from smallbatch.engines.loop import initial_model
from smallbatch.engines.resident import load_resident
from smallbatch.protocol.run import Run
from smallbatch.protocol.stream import batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from smallbatch.config.study import StudyConfig
    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.resident import Resident

BASE_LR = 2.0**-12  # the lowest of the paper's grid, at which every batch size trains
BATCH_SIZES = (2, 8, 32, 128)
SEEN = (0, 512, 2048)  # after so many examples it is measured; multiples of every batch size
BATCHES = 32  # number of batches drawn at each batch size
# Batches are drawn without replacement. With a batch of at most this fraction of the data, that
# hardly lowers the variance.
LARGEST_PART = 1 / 8


def measure_study(
    name: str,
    study: StudyConfig,
    dataset: Dataset,
    *,
    seeds: Sequence[int],
    base_lr: float = BASE_LR,
) -> list[dict[str, Any]]:
    """Measure the variance of an update in one study; the norm must treat each example by itself.

    Args:
        name: The name of the study.
        study: The settings of the study; augmentation is left out.
        dataset: The prepared data.
        seeds: The seeds of weights and batches.
        base_lr: η̃.

    Returns:
        A row per (seed, batch size, examples seen): ``dataset``, its ``fingerprint``, ``study``,
        its ``model`` and ``norm``, ``seed``, ``batch_size``, ``base_lr``, ``seen`` and
        ``variance``, the trace of the covariance of one update; NaN once a run has diverged.
    """
    torch.set_num_threads(1)  # as in training: the number of threads changes float sums
    data = load_resident(dataset, augment=False, device=torch.device("cpu"))
    n = len(data.train)
    return [
        {
            "dataset": dataset.meta.name,
            "fingerprint": dataset.meta.fingerprint,
            "study": name,
            "model": study.model,
            "norm": study.norm,
            "seed": seed,
            "batch_size": m,
            "base_lr": base_lr,
            "seen": seen,
            "variance": variance,
        }
        for seed in seeds
        for m in BATCH_SIZES
        if m <= LARGEST_PART * n
        for seen, variance in update_variances(
            Run(study, dataset.meta.fingerprint, m, base_lr, seed), data
        ).items()
    ]


def update_variances(run: Run, data: Resident, points: Sequence[int] = SEEN) -> dict[int, float]:
    """Trace of the covariance of a run's next update, over the choice of its batch.

    Args:
        run: The run; its base learning rate stays as it is, and nothing decays.
        data: The resident data.
        points: After how many examples to measure, ascending multiples of m.

    Returns:
        Examples seen → variance.
    """
    model = initial_model(run, data)
    sgd = FlatSGD(model, weight_decay=0.0, batch_size=run.batch_size)
    found: dict[int, float] = {}
    seen = 0
    for point in points:
        for _ in _gradients(run, data, model, sgd, seen, (point - seen) // run.batch_size):
            sgd.update(run.lr)
        seen = point
        # The batches that would come next, which these weights have not seen in this epoch.
        updates: list[torch.Tensor] = []
        for gradient in _gradients(run, data, model, sgd, seen, BATCHES):
            updates.append(run.base_lr * gradient.double())
            gradient.zero_()
        variance = float(torch.stack(updates).var(dim=0).sum())
        found[point] = variance if math.isfinite(variance) else math.nan
    return found


def _gradients(
    run: Run, data: Resident, model: nn.Module, sgd: FlatSGD, seen: int, count: int
) -> Iterator[torch.Tensor]:
    """The summed gradient of each of the next batches, at the weights there are then."""
    n, m = len(data.train), run.batch_size
    epochs = -(-(seen + count * m) // n)
    for examples in islice(batches(run.seed, n, epochs, m, seen // m), count):
        images, labels = data.batch(data.place(examples))
        cross_entropy(model(images), labels, reduction="sum").backward()
        yield sgd.gradient
