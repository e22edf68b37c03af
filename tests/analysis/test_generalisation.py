from __future__ import annotations

import math
from typing import Any

import pandas as pd

from smallbatch.analysis.convergence import common_base_lr, median_curves
from smallbatch.analysis.generalisation import BEST_COLUMNS, best_by_study, best_cells

NAN = math.nan


def cells_of(
    accuracy: dict[tuple[int, float], float], validation: dict[tuple[int, float], float] | None
) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (batch_size, base_lr), value in accuracy.items():
        row: dict[str, Any] = dict.fromkeys(BEST_COLUMNS, 0.0)
        row |= {"dataset": "d", "study": "s", "batch_size": batch_size, "base_lr": base_lr}
        row |= {"accuracy": value, "min_accuracy": value - 0.02, "max_accuracy": value + 0.02}
        row["validation_accuracy"] = NAN if validation is None else validation[batch_size, base_lr]
        rows.append(row)
    return pd.DataFrame(rows).drop(columns=["chosen_on", "grid_edge"])


ACCURACY = {
    (2, 0.1): 0.80, (2, 0.2): 0.85, (2, 0.4): 0.84,
    (4, 0.1): 0.90, (4, 0.2): 0.82, (4, 0.4): NAN,
    (8, 0.1): 0.60, (8, 0.2): 0.70, (8, 0.4): 0.87,
    (16, 0.1): 0.50,
    (32, 0.1): NAN, (32, 0.2): NAN,
}  # fmt: skip


def test_the_best_base_lr_of_each_batch_size_and_its_edges() -> None:
    best = best_cells(cells_of(ACCURACY, None)).set_index("batch_size")
    assert best["base_lr"].to_dict() == {2: 0.2, 4: 0.1, 8: 0.4, 16: 0.1}
    assert best["grid_edge"].to_dict() == {2: "", 4: "lower", 8: "upper", 16: "only"}


def test_choosing_on_validation_reports_the_test_accuracy_there() -> None:
    validation = dict.fromkeys(ACCURACY, 0.5) | {(2, 0.4): 0.9, (32, 0.1): NAN, (32, 0.2): NAN}
    rows = best_cells(cells_of(ACCURACY, validation), "validation").to_dict("records")
    best = {row["batch_size"]: (row["base_lr"], row["accuracy"]) for row in rows}
    assert best[2] == (0.4, 0.84)
    assert best[8] == (0.1, 0.60)  # of equals the smaller
    assert best_cells(cells_of(ACCURACY, None), "validation").empty


def test_the_best_batch_size_and_those_it_cannot_be_told_from() -> None:
    (winner,) = best_by_study(best_cells(cells_of(ACCURACY, None))).to_dict("records")
    assert (winner["batch_size"], winner["accuracy"]) == (4, 0.90)
    # the winner's worst seed is at 0.88: m = 8 reaches 0.89, m = 2 only 0.87
    assert winner["overlapping"] == (8,)


def test_a_study_without_a_finished_cell_has_no_best() -> None:
    best = best_cells(cells_of({(2, 0.1): NAN}, None))
    assert best.empty
    assert best_by_study(best).empty


def test_the_common_base_lr_is_reliable_most_often_and_the_largest_of_equals() -> None:
    cells = pd.DataFrame(
        {
            "batch_size": [2, 4, 8] * 3,
            "base_lr": [0.1] * 3 + [0.2] * 3 + [0.4] * 3,
            "reliable": [True, True, False, True, False, True, True, False, False],
        }
    )
    assert common_base_lr(cells) == 0.2


def test_median_curves_end_where_most_seeds_diverged() -> None:
    def run(name: str, accuracies: list[float], outcome: str) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "run": name,
                "batch_size": 4,
                "base_lr": 0.5,
                "epoch": range(1, len(accuracies) + 1),
                "updates": range(10, 10 * len(accuracies) + 10, 10),
                "outcome": outcome,
                "test_accuracy": accuracies,
                "train_loss": [1 - value for value in accuracies],
                "train_accuracy": accuracies,
            }
        )

    finished = run("a", [0.2, 0.4, 0.6], "finished")
    lost_late = run("b", [0.3, 0.5, NAN], "diverged")
    lost_early = run("c", [0.1, NAN], "diverged")
    curve = median_curves(pd.concat([finished, lost_late, lost_early]))
    # epoch 1: 0.1 0.2 0.3; epoch 2: diverged 0.4 0.5; epoch 3: diverged diverged 0.6
    assert curve["test_accuracy"].tolist()[:2] == [0.2, 0.4]
    assert curve["train_loss"].tolist()[:2] == [0.8, 0.6]
    assert math.isnan(curve["test_accuracy"].iloc[2])
    assert math.isnan(curve["train_loss"].iloc[2])
    assert curve["updates"].tolist() == [10, 20, 30]
