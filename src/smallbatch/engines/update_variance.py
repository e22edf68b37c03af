"""How the variance of one update grows with the batch size, measured at a run's first weights.

An update in the sum form is η̃·Σ∇L_i over m examples (paper, eq. 5). At fixed η̃ and weights its
variance over the choice of the batch should be η̃²·m times that of one example's gradient.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from smallbatch.engines.loop import FlatSGD, initial_model
from smallbatch.engines.resident import load_resident
from smallbatch.protocol.run import Run
from smallbatch.protocol.stream import batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.config.params import StudyConfig
    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.resident import Resident

BASE_LR = 2.0**-8  # as in the paper's Fig. 4; the variance is proportional to its square
BATCH_SIZES = (2, 8, 32, 128)
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
        A row per (seed, batch size): ``dataset``, its ``fingerprint``, ``study``, its ``model`` and
        ``norm``, ``seed``, ``batch_size``, ``base_lr`` and ``variance``, the trace of the
        covariance of one update.
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
            "variance": update_variance(
                Run(study, dataset.meta.fingerprint, m, base_lr, seed), data
            ),
        }
        for seed in seeds
        for m in BATCH_SIZES
        if m <= LARGEST_PART * n
    ]


def update_variance(run: Run, data: Resident) -> float:
    """Trace of the covariance of a run's first update, over the choice of its batch."""
    model = initial_model(run, data)
    sgd = FlatSGD(model, weight_decay=0.0)
    n = len(data.train)
    stream = batches(run.seed, n, -(-BATCHES * run.batch_size // n), run.batch_size)
    updates: list[torch.Tensor] = []
    for examples in islice(stream, BATCHES):
        images, labels = data.batch(data.place(examples))
        cross_entropy(model(images), labels, reduction="sum").backward()
        updates.append(run.base_lr * sgd.gradient.double())
        sgd.gradient.zero_()
    stacked = torch.stack(updates)
    return float(stacked.var(dim=0).sum())
