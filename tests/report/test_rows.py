from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smallbatch.analysis.cells import STUDY_KEYS
from smallbatch.analysis.convergence import median_curves
from smallbatch.analysis.evaluation import evaluate, read_evaluation
from smallbatch.analysis.generalisation import best_cells
from smallbatch.analysis.ghost import bn_cells
from smallbatch.analysis.stability import stable_ranges
from smallbatch.report.rows import (
    MOST_POINTS,
    cell_rows,
    columnar,
    curve_rows,
    range_rows,
    run_rows,
)
from tests.analysis import synthetic

STUDY = synthetic.Study(
    "s", batch_sizes=(2, 8), base_lrs=(2.0**-8, 0.01, 2.0**-2), unlucky={(2, 0.01): 1}, epochs=90
)


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    root: Path = tmp_path_factory.mktemp("rows")
    evaluate(synthetic.write_models(root / "models", (STUDY,)), root / "evaluation")
    return read_evaluation(root / "evaluation")


def test_a_cell_says_what_became_of_its_seeds(
    evaluated: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
) -> None:
    cells = evaluated[1]
    rows = {(row["m"], row["base_lr"]): row for row in cell_rows(cells, best_cells(cells))}
    assert len(rows) == 6
    finished, partly, lost = rows[8, 0.01], rows[2, 0.01], rows[8, 2.0**-2]
    whole = cells[(cells["batch_size"] == 8) & (cells["base_lr"] == 0.01)].iloc[0]
    assert finished["accuracy"] == round(100 * whole["accuracy"], 2)
    assert finished["text"] == f"{100 * whole['accuracy']:.0f}"
    assert finished["outcome"] == "3 of 3 seeds finished"
    assert finished["best"]
    assert (partly["text"][-3:], partly["outcome"]) == (" ×1", "2 of 3 seeds finished")
    assert partly["low"] is None
    assert partly["lost"]
    assert partly["seeds"].startswith("diverged …")
    assert (lost["text"], lost["outcome"]) == ("×", "all 3 seeds diverged")
    assert (lost["accuracy"], lost["dark"], lost["lost"]) == (None, False, False)
    # What is no power of two is written in digits.
    assert (finished["base_lr_label"], finished["lr_label"]) == ("0.01", "0.08")
    assert finished["frame"] == "η̃ = 0.01"
    json.dumps(list(rows.values()), allow_nan=False)


def test_learning_rates_that_differ_in_the_fourth_digit_have_labels_of_their_own() -> None:
    one = {"dataset": "d", "study": "s", "batch_size": 4, "n_seeds": 1, "n_diverged": 0,
           "accuracy": 0.5, "min_accuracy": 0.5, "max_accuracy": 0.5, "chance": 0.1,
           "optimizer": "sgd"}  # fmt: skip
    cells = pd.DataFrame(
        [{**one, "base_lr": base_lr, "lr": 4 * base_lr} for base_lr in (0.01001, 0.01002, 0.25)]
    )
    rows = cell_rows(cells, pd.DataFrame(columns=["batch_size"]))
    assert [row["base_lr_label"] for row in rows] == ["0.01001", "0.01002", "2⁻²"]
    assert len({row["frame"] for row in rows}) == 3


def test_a_median_on_a_diverged_run_is_no_accuracy() -> None:
    cell = {"dataset": "d", "study": "s", "batch_size": 4, "base_lr": 0.5, "n_seeds": 3,
            "n_diverged": 2, "accuracy": math.nan, "min_accuracy": math.nan, "max_accuracy": 0.5,
            "chance": 0.1, "reliable": False, "lr": 2.0, "optimizer": "sgd"}  # fmt: skip
    (row,) = cell_rows(pd.DataFrame([cell]), pd.DataFrame(columns=["batch_size"]))
    assert (row["text"], row["all_diverged"], row["lost"]) == ("×2", False, False)
    assert row["outcome"] == "1 of 3 seeds finished"


def test_every_run_has_its_outcome_and_a_thinned_curve(
    evaluated: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
) -> None:
    runs, cells, history = evaluated
    rows = run_rows(runs, history)
    assert len(rows) == len(runs) == 18
    assert {row["key"] for row in rows} == {
        row["key"] for row in cell_rows(cells, best_cells(cells))
    }
    whole = next(row for row in rows if row["said"].endswith("%"))
    assert len(whole["epochs"]) == MOST_POINTS < STUDY.epochs
    assert (whole["epochs"][0], whole["epochs"][-1]) == (1, STUDY.epochs)
    assert len(whole["accuracies"]) == len(whole["epochs"])
    told = {row["said"] for row in rows if row["key"].endswith(f"m8 {2.0**-2:.9g}")}
    at = runs[(runs["batch_size"] == 8) & (runs["base_lr"] == 2.0**-2)]
    assert told == {
        f"diverged at update {run.diverged_at} of {run.updates}" for run in at.itertuples()
    }


def test_a_range_has_a_dot_at_each_reliable_cell_alone() -> None:
    reach = [0.2, 0.6, math.nan, 0.8, 0.95]
    base_lrs = [2.0**-k for k in (9, 8, 7, 6, 5)]
    cells = pd.DataFrame(
        {"dataset": "d", "study": "s", "batch_size": 4, "base_lr": base_lrs, "reach": reach,
         "chance": 0.1, "best_accuracy": 0.9, "n_diverged": [0, 0, 1, 0, 0],
         "lr": [4 * base_lr for base_lr in base_lrs], "optimizer": "sgd"}
    )  # fmt: skip
    rows = range_rows(stable_ranges(cells), cells)
    main = [row for row in rows if row["main"]]
    (bar,) = (row for row in main if row["part"] == "bar")
    assert (bar["lower"], bar["upper"]) == (2.0**-8, 2.0**-5)
    assert (bar["lower_edge"], bar["upper_edge"]) == (False, True)
    assert (bar["range"], bar["range_lr"]) == ("2⁻⁸ … 2⁻⁵", "2⁻⁶ … 2⁻³")
    dots = [(row["at"], row["at_lr"]) for row in main if row["part"] == "dot"]
    assert dots == [(2.0**-k, 4 * 2.0**-k) for k in (8, 6, 5)]


def _history(values: dict[str, list[float]], outcome: dict[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {"run": run, "dataset": "d", "study": "s", "batch_size": 8, "base_lr": 0.5, "seed": 0,
         "epoch": epoch + 1, "updates": 10 * (epoch + 1), "test_accuracy": value,
         "train_loss": 1.0, "train_accuracy": value, "outcome": outcome[run]}
        for run, own in values.items() for epoch, value in enumerate(own)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "outcome", "crosses"),
    [
        # All finished: no cross, though nothing follows the last epoch.
        ({"a": [0.2, 0.4], "b": [0.2, 0.5]}, {"a": "finished", "b": "finished"}, []),
        # One of three diverged: its median goes on.
        (
            {"a": [0.2, 0.4, 0.5], "b": [0.2], "c": [0.1, 0.3, 0.4]},
            {"a": "finished", "b": "diverged", "c": "finished"},
            [],
        ),
        # Two of three diverged in the third epoch: the curve ends with the second.
        (
            {"a": [0.2, 0.4, 0.5, 0.6], "b": [0.2, 0.3, math.nan], "c": [0.2, 0.2, math.nan]},
            {"a": "finished", "b": "diverged", "c": "diverged"},
            [2],
        ),
    ],
)
def test_a_cross_means_divergence(
    values: dict[str, list[float]], outcome: dict[str, str], crosses: list[int]
) -> None:
    history = _history(values, outcome)
    curves = median_curves(history)
    curves.insert(0, "dataset", "d")
    curves.insert(1, "study", "s")
    runs = pd.DataFrame({"batch_size": [8], "base_lr": [0.5], "seconds": [12.0]})
    rows = curve_rows(curves, runs)
    assert [row["epoch"] for row in rows if row["diverges"]] == crosses
    assert rows[-1]["diverges"] == bool(crosses)
    json.dumps(rows, allow_nan=False)


def test_a_loss_about_to_diverge_does_not_flatten_the_others() -> None:
    curves = pd.DataFrame(
        {"dataset": "d", "study": "s", "batch_size": [2, 2, 2, 512, 512], "base_lr": 0.5,
         "epoch": [1, 2, 3, 1, 2], "updates": 1, "test_accuracy": 0.1,
         "train_loss": [2.0, 1.5, 1.0, 1e30, math.nan], "diverged": [False] * 4 + [True]}
    )  # fmt: skip
    runs = pd.DataFrame({"batch_size": [2, 512], "base_lr": 0.5, "seconds": [3.0, math.nan]})
    rows = curve_rows(curves, runs)
    assert max(row["loss"] for row in rows if row["loss"] is not None) == 3.0
    # Time is shared out over the epochs; where it is not known there is none.
    assert [row["seconds"] for row in rows if row["m"] == 2] == [1.0, 2.0, 3.0]
    assert {row["seconds"] for row in rows if row["m"] == 512} == {None}


def test_cells_of_several_bn_batch_sizes_have_keys_of_their_own() -> None:
    runs = pd.DataFrame(
        {"dataset": "d", "study": "g", "batch_size": 8, "bn_batch_size": [2, 2, 4, 4],
         "bn_batch_sizes": "[2, 4]", "base_lr": 0.5, "seed": [0, 1] * 2, "run": list("abcd"),
         "outcome": "finished", "reported_accuracy": [0.5, 0.6, 0.7, np.nan], "classes": 10,
         "lr": 4.0, "optimizer": "sgd"}
    )  # fmt: skip
    rows = cell_rows(bn_cells(runs), pd.DataFrame(columns=[*STUDY_KEYS]))
    assert [(row["bn"], row["frame"]) for row in rows] == [(2, "m = 8"), (4, "m = 8")]
    assert len({row["key"] for row in rows}) == 2


def test_rows_become_columns_and_back() -> None:
    rows = [{"a": 1, "b": None}, {"a": 2, "c": "x"}]
    columns = columnar(rows)
    assert columns == {"a": [1, 2], "b": [None, None], "c": [None, "x"]}
    assert columnar([]) == {}
