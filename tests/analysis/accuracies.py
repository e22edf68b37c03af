"""The runs of a made-up study from its accuracies, as `load_results` makes them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Accuracies = dict[tuple[int, float], list[float]]
LOST = math.nan
"""In place of an accuracy: the run diverged."""

PLAIN_SGD: dict[str, Any] = {
    "optimizer": "sgd", "momentum": math.nan, "betas": None, "beta2_examples": math.nan,
    "eps": math.nan, "schedule": "step",
}  # fmt: skip
"""The optimiser and the schedule of the paper, as `load_results` has them."""

_ALIKE = {
    "dataset": "digits", "study": "mine", "fingerprint": "f", "protocol": 1, "classes": 10,
    "n_test": 10_000, "n_validation": 5_000,
    "updates": 100, "epochs": 5, "budget": "epochs", "base_lr_from": None, "bn_batch_sizes": None,
    "parameters": 10, **PLAIN_SGD,
}  # fmt: skip


def runs_of(
    accuracies: Mapping[tuple[int, float], Sequence[float]],
    validation: Mapping[tuple[int, float], Sequence[float]] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """One row per run.

    Args:
        accuracies: (m, η̃) → test accuracies by seed, `LOST` for a diverged run.
        validation: The same of the validation split, if there is one.
        settings: Columns with other values than the usual ones.
    """
    rows: list[dict[str, Any]] = []
    for (m, base_lr), values in accuracies.items():
        for seed, value in enumerate(values):
            diverged = math.isnan(value)
            other = validation[m, base_lr][seed] if validation else math.nan
            rows.append(
                {
                    "batch_size": m,
                    "base_lr": base_lr,
                    "lr": m * base_lr,
                    "seed": seed,
                    "run": f"{m}-{base_lr}-{seed}",
                    "outcome": "diverged" if diverged else "finished",
                    **_ALIKE,
                    "reported_accuracy": value,
                    "reported_validation_accuracy": math.nan if diverged else other,
                    "final_train_accuracy": value,
                    "population_test_accuracy": math.nan,
                    "generalisation_gap": math.nan if diverged else 0.0,
                }
            )
    return pd.DataFrame(rows).assign(**settings)


def grid(
    tops: Mapping[int, float], base_lrs: Sequence[float] = (2**-10, 2**-9, 2**-8, 2**-7, 2**-6),
    *, n: int = 3, sd: float = 0.01, seed: int = 0,
) -> Accuracies:  # fmt: skip
    """Accuracies whose mean at each m falls off by 3 points per step from the middle η̃.

    Args:
        tops: m → the mean at the middle η̃.
        base_lrs: The η̃.
        n: The number of seeds.
        sd: The standard deviation of one run.
        seed: Of the noise.
    """
    rng = np.random.default_rng(seed)
    middle = len(base_lrs) // 2
    return {
        (m, base_lr): (top - 0.03 * abs(place - middle) + sd * rng.normal(size=n)).tolist()
        for m, top in tops.items()
        for place, base_lr in enumerate(base_lrs)
    }
