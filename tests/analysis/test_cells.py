from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.cells import is_reliable, summarise_cells

NAN = math.nan


def runs_of(cells: dict[tuple[int, float], list[float]], classes: int = 10) -> pd.DataFrame:
    """Runs of one study out of (m, η̃) → reported accuracies; NaN stands for a diverged seed."""
    rows: list[dict[str, Any]] = []
    for (batch_size, base_lr), accuracies in cells.items():
        for seed, accuracy in enumerate(accuracies):
            rows.append(
                {
                    "dataset": "d",
                    "study": "s",
                    "batch_size": batch_size,
                    "base_lr": base_lr,
                    "lr": batch_size * base_lr,
                    "seed": seed,
                    "run": f"{batch_size}-{base_lr}-{seed}",
                    "outcome": "diverged" if math.isnan(accuracy) else "finished",
                    "classes": classes,
                    "optimizer": "sgd",
                    "bn_batch_sizes": None,
                    "reported_accuracy": accuracy,
                    "reported_validation_accuracy": accuracy - 0.02,
                    "final_train_accuracy": accuracy + 0.1,
                    "population_test_accuracy": NAN,
                    "generalisation_gap": 0.1 + 0 * accuracy,
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("accuracies", "median", "lowest", "highest"),
    [
        ([0.5, 0.7, 0.6], 0.6, 0.5, 0.7),
        ([0.5, 0.7], 0.6, 0.5, 0.7),
        ([0.5], 0.5, 0.5, 0.5),
        # a diverged run ranks below every finished one and counts
        ([NAN, 0.7, 0.6], 0.6, NAN, 0.7),
        ([NAN, NAN, 0.6], NAN, NAN, 0.6),
        ([NAN, 0.6], NAN, NAN, 0.6),
        ([NAN, 0.5, 0.6, 0.8], 0.55, NAN, 0.8),
        ([NAN, NAN, 0.6, 0.8], NAN, NAN, 0.8),
        ([NAN, NAN, NAN], NAN, NAN, NAN),
    ],
)
def test_diverged_seeds_rank_last(
    accuracies: list[float], median: float, lowest: float, highest: float
) -> None:
    (cell,) = summarise_cells(runs_of({(4, 0.5): accuracies})).to_dict("records")
    assert cell["accuracy"] == pytest.approx(median, nan_ok=True)
    assert cell["min_accuracy"] == pytest.approx(lowest, nan_ok=True)
    assert cell["max_accuracy"] == pytest.approx(highest, nan_ok=True)
    assert cell["n_seeds"] == len(accuracies)
    assert cell["n_diverged"] == sum(math.isnan(value) for value in accuracies)


def test_mean_and_deviation_exist_only_without_divergence() -> None:
    cells = summarise_cells(runs_of({(2, 0.5): [0.5, 0.7, 0.6], (4, 0.5): [NAN, 0.7, 0.6]}))
    assert cells["mean_accuracy"].tolist() == pytest.approx([0.6, NAN], nan_ok=True)
    assert cells["sd_accuracy"].tolist() == pytest.approx([0.1, NAN], nan_ok=True)
    assert cells["generalisation_gap"].tolist() == pytest.approx([0.1, NAN], nan_ok=True)


def test_reliable_means_every_seed_finished_above_the_threshold() -> None:
    # 10 classes: chance 0.1; the best median is 0.9, so τ(½) = 0.5
    cells = summarise_cells(
        runs_of(
            {
                (2, 0.1): [0.9, 0.92, 0.88],
                (2, 0.2): [0.5, 0.5, 0.8],  # exactly at τ
                (2, 0.3): [0.49, 0.9, 0.9],  # one seed below
                (2, 0.4): [0.9, 0.9, NAN],  # one seed diverged
            }
        )
    )
    assert cells["reliable"].tolist() == [True, True, False, False]
    assert cells["reach"].tolist() == pytest.approx([0.975, 0.5, 0.4875, NAN], nan_ok=True)
    assert is_reliable(cells["reach"], 0.25).tolist() == [True, True, True, False]
    assert is_reliable(cells["reach"], 0.9).tolist() == [True, False, False, False]


def test_nothing_is_reliable_where_nothing_beats_chance() -> None:
    cells = summarise_cells(runs_of({(2, 0.1): [0.1, 0.1], (2, 0.2): [0.1, 0.1]}))
    assert not cells["reliable"].any()


def test_without_a_validation_split_there_is_no_validation_accuracy() -> None:
    runs = runs_of({(2, 0.1): [0.5, NAN, 0.6]}).assign(reported_validation_accuracy=NAN)
    assert summarise_cells(runs)["validation_accuracy"].isna().all()
