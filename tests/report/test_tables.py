"""The tables of the page, where a careless version would be wrong."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.cells import MAIN_FRACTION, add_reliability
from smallbatch.analysis.stability import stable_ranges
from smallbatch.report.tables import (
    Table,
    best_table,
    fit_table,
    fraction_table,
    range_table,
    seeds_of,
    study_table,
    why_none,
)


def column(table: Table, name: str) -> list[str]:
    index = table.headers.index(name)
    return [row[index] for row in table.rows]


def test_a_range_has_its_width_whatever_the_step_of_the_grid() -> None:
    row = {
        "batch_size": 8, "fraction": MAIN_FRACTION, "lower": 0.001, "upper": 0.0031,
        "octaves": 1.6323, "n_reliable": 3, "n_base_lrs": 4, "lower_lr": 0.008, "upper_lr": 0.0248,
        "lower_limit": "", "upper_limit": "", "holes": (), "threshold": 0.5,
    }  # fmt: skip
    # A range of one η̃ is 0 octaves wide, which is not the same as none.
    one = row | {"batch_size": 16, "octaves": 0.0, "n_reliable": 1, "upper": 0.001}
    none = row | {"batch_size": 32, "octaves": math.nan, "n_reliable": 0, "lower": math.nan}
    table = range_table(pd.DataFrame([row, one, none]))
    assert column(table, "width (octaves)") == ["1.63", "0", "none reliable"]


def made(rows: list[tuple[int, float, float, float]]) -> pd.DataFrame:
    """Ranges of one study from its cells: m, η̃, the worst and best seed; NaN: one diverged."""
    table = [
        {"dataset": "d", "study": "a", "batch_size": m, "base_lr": base_lr, "chance": 0.1,
         "n_diverged": int(math.isnan(low)), "accuracy": high, "min_accuracy": low,
         "lr": m * base_lr, "optimizer": "sgd"}
        for m, base_lr, low, high in rows
    ]  # fmt: skip
    return stable_ranges(add_reliability(pd.DataFrame(table)))


GOOD, BAD, LOST = (0.8, 0.9), (0.1, 0.2), (math.nan, 0.9)


def test_what_is_next_to_a_range_is_said_of_seeds_and_not_of_cells() -> None:
    """The cell above the range has the best median and a seed that diverged."""
    found = made(
        [(2, 0.125, *BAD), (2, 0.25, *GOOD), (2, 0.5, *LOST), (4, 0.25, *GOOD), (8, 0.25, *BAD)]
    )
    table = range_table(found)
    assert table.caption.endswith("(every seed at least 50.0 %).")  # 0.1 + ½·(0.9 − 0.1)
    assert column(table, "next below") == ["a seed below τ", "edge of the grid", "–"]
    assert column(table, "next above") == ["a seed diverged", "edge of the grid", "–"]
    assert column(table, "η̃ reliable") == ["1 of 3", "1 of 1", "0 of 1"]
    assert column(table, "highest η") == ["2⁻¹", "2⁰", "–"]


def test_holes_are_counted_and_listed() -> None:
    found = made([(2, 0.1, *GOOD), (2, 0.2, *BAD), (2, 0.25, *LOST), (2, 0.3, *GOOD)])
    assert column(range_table(found), "holes") == ["0.2, 2⁻²"]
    assert column(range_table(found), "η̃ reliable") == ["2 of 4"]
    assert fraction_table(found).rows[0][2] == "0.1 … 0.3 (2 missing)"


def test_each_fraction_has_its_own_range_and_threshold() -> None:
    """τ lies at 30, 50, 70 and 82 % of a best cell of 90 %."""
    found = made([(2, 0.25, 0.6, 0.7), (2, 0.5, 0.9, 0.9), (4, 0.25, 0.3, 0.4), (4, 0.5, *BAD)])
    table = fraction_table(found)
    assert [header.partition("τ = ")[2] for header in table.headers[1:]] == [
        "30.0 %)", "50.0 %)", "70.0 %)", "82.0 %)",
    ]  # fmt: skip
    assert [list(row) for row in table.rows] == [
        ["2", "2⁻² … 2⁻¹", "2⁻² … 2⁻¹", "2⁻¹", "2⁻¹"],
        ["4", "2⁻²", "none", "none", "none"],
    ]


@pytest.mark.parametrize(
    ("uppers", "base_lr_0", "m_star"),
    [
        ({2: 0.5, 4: 0.25, 8: 0.125, 16: 0.0625}, "at least 4.23", "at most 0.25"),
        ({2: 0.5, 4: 0.5, 8: 0.5}, "0.536", "at least 64"),
        ({2: 0.5, 4: 0.5}, "–", "–"),
    ],
)
def test_a_fit_that_is_only_bounded_says_so(
    uppers: dict[int, float], base_lr_0: str, m_star: str
) -> None:
    """Upper ends that fall as 1/m from the start, that do not fall at all, and too few of them."""
    grid = [2.0**-k for k in range(6)]
    found = made(
        [(m, lr, *(GOOD if lr <= upper else LOST)) for m, upper in uppers.items() for lr in grid]
    )
    table = fit_table(found)
    assert column(table, "η̃₀")[1] == base_lr_0
    assert column(table, "m*")[1] == m_star
    assert column(table, "batch sizes")[1] == (
        str(len(uppers)) if len(uppers) > 2 else "fewer than 3"
    )


def best(*accuracies: float, **more: Any) -> pd.DataFrame:
    rows = [
        {"batch_size": 2**k, "base_lr": 0.25, "lr": 0.25 * 2**k, "accuracy": value,
         "min_accuracy": value, "max_accuracy": value, "n_seeds": 3, "n_diverged": 0,
         "train_accuracy": 1.0, "generalisation_gap": 0.1, "population_test_accuracy": math.nan,
         "grid_edge": "", "study": "a", "overlapping": ()} | more
        for k, value in enumerate(accuracies)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_accuracies_of_a_small_test_set_come_with_their_interval() -> None:
    table = best_table(best(0.67, 0.5, math.nan), "test", 200)
    assert column(table, "95 % interval") == ["60.2 … 73.1 %", "43.1 … 56.9 %", "–"]
    assert "there are 200 test images only" in table.caption


def test_the_interval_of_one_accuracy_brings_those_of_all() -> None:
    """Near 1 so many images are enough, near ½ they are not."""
    assert column(best_table(best(0.5, 0.99), "test", 5_000), "95 % interval") == [
        "48.6 … 51.4 %",
        "98.7 … 99.2 %",
    ]


@pytest.mark.parametrize("n_test", [10_000, None])
def test_a_large_or_unknown_test_set_has_no_interval(n_test: int | None) -> None:
    table = best_table(best(0.5, 0.9), "test", n_test)
    assert "95 % interval" not in table.headers
    assert "interval" not in table.caption


@pytest.mark.parametrize(
    ("low", "high", "diverged", "text"),
    [
        (0.5, 0.6, 0, "50.0 … 60.0 %"),
        (math.nan, 0.6, 1, "diverged … 60.0 %"),
        (math.nan, math.nan, 3, "all diverged"),
        # seeds finished, but have no accuracy
        (math.nan, math.nan, 0, "–"),
        (math.nan, math.nan, 2, "–"),
    ],
)
def test_a_seed_is_called_diverged_only_where_it_did(
    low: float, high: float, diverged: int, text: str
) -> None:
    row = {"min_accuracy": low, "max_accuracy": high, "n_seeds": 3, "n_diverged": diverged}
    assert seeds_of(row) == text


def runs(study: str, outcomes: list[str], accuracy: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        {"study": study, "batch_size": 2, "bn_batch_size": None, "base_lr": 0.25, "classes": 10,
         "n_test": 200, "outcome": outcomes,
         "reported_accuracy": [math.nan if it == "diverged" else accuracy for it in outcomes]}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcomes", "accuracy", "why"),
    [
        (["diverged"] * 2, 0.5, "every run diverged"),
        (["diverged", "finished"], 0.5, "in every cell at least half of the seeds diverged"),
        (["diverged", "finished"], math.nan, "no finished run has an accuracy"),
    ],
)
def test_why_there_is_no_best_cell(outcomes: list[str], accuracy: float, why: str) -> None:
    assert why_none(runs("a", outcomes, accuracy)) == why


def test_a_study_without_a_result_has_no_best_accuracy() -> None:
    winners = pd.concat([best(0.6), best(0.12, study="chance")])
    every = [runs("a", ["finished"]), runs("chance", ["finished"]),
             runs("lost", ["diverged", "finished"])]  # fmt: skip
    table = study_table(winners, pd.concat(every))
    assert column(table, "study") == ["a", "chance", "lost"]
    assert column(table, "best accuracy") == [
        "60.0 %",
        "none: 12.0 % is not beyond chance",
        "none: in every cell at least half of the seeds diverged",
    ]
    assert column(table, "at m") == ["1", "–", "–"]
    assert column(table, "runs (diverged)") == ["1 (0)", "1 (0)", "2 (1)"]
