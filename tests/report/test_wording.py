"""The sentences on one study, where a careless version would be wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from smallbatch.analysis.cells import add_reliability
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.limit_band import LimitBand
from smallbatch.analysis.stability import LimitFit, stable_ranges
from smallbatch.report.wording import (
    best_sentence,
    convergence_sentence,
    fit_sentence,
    nothing_learned,
    range_sentence,
    single_seeds,
    stale_statistics,
    warnings,
)

WINNER: dict[str, Any] = {
    "accuracy": 0.67, "min_accuracy": 0.6, "max_accuracy": 0.69, "n_seeds": 5, "batch_size": 16,
    "base_lr": 0.5, "lr": 8.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "67.0 % (median of 5 seeds, 60.0 … 69.0 %), at m = 16 with η̃ = 2⁻¹ (η = 2³)."),
        ({"min_accuracy": math.nan}, "67.0 % (median of 5 seeds, diverged … 69.0 %), at m = 16"),
        ({"n_seeds": 1}, "67.0 % (one seed, so nothing is known about its spread), at m = 16"),
        ({"base_lr": 0.3, "lr": 4.8}, "with η̃ = 0.3 (η = 4.8)."),
    ],
)
def test_the_best_cell_and_its_seeds(changed: dict[str, Any], said: str) -> None:
    assert said in best_sentence(WINNER | changed, None)


def test_a_small_test_set_leaves_an_interval_and_a_large_one_none() -> None:
    small = best_sentence(WINNER, 200)
    # 134 of 200; Wilson: (134 + z²/2 ± z·√(134·66/200 + z²/4)) / (200 + z²), z = 1.96
    assert "The test set has only 200 images" in small
    assert "this leaves 60.2 … 73.1 % (95 % interval), however many seeds there are." in small
    assert "interval" not in best_sentence(WINNER, 10_000)
    assert "interval" not in best_sentence(WINNER, None)


def made(rows: list[tuple[int, float, float, float]], **more: Any) -> pd.DataFrame:
    """Cells of one study: m, η̃, the worst and the best of three seeds; NaN where one diverged."""
    table = [
        {"dataset": "d", "study": "a", "batch_size": m, "base_lr": base_lr, "lr": m * base_lr,
         "chance": 0.1, "n_seeds": 3, "n_diverged": int(math.isnan(low)),
         "accuracy": (high if math.isnan(low) else (low + high) / 2), "min_accuracy": low,
         "max_accuracy": high, "sd_accuracy": 0.01, "validation_accuracy": math.nan,
         "train_accuracy": high, "generalisation_gap": 0.0,
         "population_test_accuracy": math.nan, "optimizer": "sgd"} | more
        for m, base_lr, low, high in rows
    ]  # fmt: skip
    return add_reliability(pd.DataFrame(table))


def ranges(rows: list[tuple[int, float, float, float]]) -> pd.DataFrame:
    return stable_ranges(made(rows))


GOOD, BAD, LOST = (0.8, 0.9), (0.1, 0.2), (math.nan, 0.5)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        # the first m has none: the sentence begins at the first that has one
        ([(2, 0.25, *BAD), (2, 0.5, *LOST), (8, 0.25, *GOOD), (8, 0.5, *LOST)],
         ("The reliable range is η̃ = 2⁻² at m = 8 (1 value of the grid, lower end on the grid's "
         "edge). No η̃ is reliable at m = 2.")),
        # a single η̃ reliable among others, and a range whose width is 0 octaves
        ([(2, 0.125, *BAD), (2, 0.25, *GOOD), (2, 0.5, *BAD)],
         "The reliable range is η̃ = 2⁻² at m = 2 (1 value of the grid)."),
        # a hole is not counted as reliable; η̃ need not be powers of two
        ([(4, 0.1, *GOOD), (4, 0.2, *BAD), (4, 0.3, *GOOD)],
         ("The reliable range is η̃ = 0.1 … 0.3 at m = 4 (2 values of the grid, lower and upper end "
         "on the grid's edge).")),
        # the range of the smallest m and that of the largest, whatever the order of the rows
        ([(8, 0.25, *GOOD), (8, 0.5, *GOOD), (2, 0.5, *GOOD), (2, 0.25, *BAD), (4, 0.5, *GOOD)],
         ("The reliable range is η̃ = 2⁻¹ at m = 2 (1 value of the grid, upper end on the grid's "
         "edge) and 2⁻² … 2⁻¹ at m = 8 (2 values of the grid, lower and upper end on the grid's "
         "edge).")),
        # the best cell itself has a seed that diverged
        ([(2, 0.5, math.nan, 0.9)], "No base learning rate converges reliably at any batch size."),
    ],
)  # fmt: skip
def test_a_range_is_said_as_it_is(rows: list[tuple[int, float, float, float]], said: str) -> None:
    assert range_sentence(ranges(rows)) == said


def test_a_seed_at_tau_is_reliable_and_one_below_is_not() -> None:
    """τ = 0.1 + ½·(0.85 − 0.1) = 0.475."""
    rows = [(2, 0.25, 0.475, 0.6), (2, 0.5, *GOOD), (4, 0.25, 0.4749, 0.6), (4, 0.5, *GOOD)]
    said = range_sentence(ranges(rows))
    assert "2⁻² … 2⁻¹ at m = 2 (2 values" in said
    assert "2⁻¹ at m = 4 (1 value " in said


def all_warnings(cells: pd.DataFrame) -> list[str]:
    return warnings(best_cells(cells), stable_ranges(cells), cells, runs())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(2, 0.125, *BAD), (2, 0.25, *GOOD), (2, 0.5, *BAD)], []),
        ([(2, 0.25, *GOOD), (2, 0.5, *BAD), (4, 0.125, *BAD), (4, 0.25, *GOOD)],
         ["is the lowest one tried at m = 2:", "is the highest one tried at m = 4:",
          "the lower edge of the grid at m = 2 ", "upper edge of the grid at m = 4 "]),
        ([(2, 0.25, *GOOD)], ["is the only one tried at m = 2: the optimum may lie outside",
                              "the lower edge of the grid at m = 2", "the upper edge of the grid"]),
        ([(2, 0.125, *GOOD), (2, 0.2, *BAD), (2, 0.25, 0.85, 0.95), (2, 0.3, *GOOD),
          (2, 0.5, *BAD)],
         ["reaches the lower edge of the grid at m = 2", "The range at m = 2 has unreliable η̃"]),
        ([(2, 0.125, *BAD), (2, 0.25, math.nan, 0.9), (2, 0.5, *BAD)],
         ["Some seeds of the best cell diverged at m = 2"]),
        ([(2, 0.125, *BAD), (2, 0.25, *GOOD), (2, 0.5, *BAD),
          (4, 0.125, 0.1, 0.1), (4, 0.25, 0.1, 0.12), (4, 0.5, 0.1, 0.1)],
         ["At m = 4 not even the best cell is beyond chance"]),
    ],
)  # fmt: skip
def test_what_limits_the_reading_is_said_of_the_batch_sizes_it_is_true_of(
    rows: list[tuple[int, float, float, float]], said: list[str]
) -> None:
    found = all_warnings(made(rows))
    assert len(found) == len(said)
    for line, part in zip(found, said, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("seeds", "said"), [([3, 3], ""), ([1, 3], "Some cells have"), ([1, 1], "Every cell has")]
)
def test_single_seeds_are_named_also_where_the_best_cell_has_several(
    seeds: list[int], said: str
) -> None:
    cells = made([(2, 0.25, *BAD), (2, 0.5, *GOOD)]).assign(n_seeds=seeds)
    lines = single_seeds(cells)
    assert bool(lines) == bool(said)
    assert not [line for line in lines if not line.startswith(said)]
    assert [line for line in all_warnings(cells) if "one seed" in line] == lines


@pytest.mark.parametrize(
    ("population", "low", "high", "warned"),
    [
        (0.72, 0.6, 0.62, True),
        (0.64, 0.6, 0.62, False),  # 3 points
        (0.72, 0.5, 0.7, False),  # the seeds are further apart
        (0.72, math.nan, 0.62, True),  # a seed diverged: only the others have a spread
        (math.nan, 0.6, 0.62, False),  # without batch norm
    ],
)
def test_running_statistics_that_lag_behind_are_pointed_out(
    population: float, low: float, high: float, warned: bool
) -> None:
    cells = made([(8, 0.5, 0.7, 0.72), (64, 0.5, low, high)])
    cells.loc[1, "population_test_accuracy"] = population
    lines = stale_statistics(best_cells(cells))
    assert bool(lines) == warned
    assert lines == [line for line in all_warnings(cells) if "running statistics" in line]
    if warned:
        assert f"72.0 % instead of {100 * cells['accuracy'][1]:.1f} % at m = 64." in lines[0]
        assert "m = 8" not in lines[0]


def runs(n_test: object = 200) -> pd.DataFrame:
    return pd.DataFrame(
        {"batch_size": [2, 2], "bn_batch_size": [None, None], "base_lr": [0.25, 0.5],
         "n_test": [n_test] * 2, "classes": [10, 10]}
    )  # fmt: skip


def test_a_study_at_chance_is_said_to_have_learned_nothing() -> None:
    cells = made([(2, 0.25, 0.1, 0.1), (2, 0.5, 0.11, 0.13)])
    assert nothing_learned(cells, runs()) == (
        "Nothing here learned beyond chance: train longer, or try other learning rates. The best "
        "of 2 cells is right on 12.0 % of 200 test images, and guessing one of 10 classes on "
        "10.0 %; 16.5 % would be more than luck."
    )
    assert nothing_learned(cells, runs(2)).endswith(
        "10.0 %; so few images can never show more than luck."
    )
    assert "12.0 %, and guessing" in nothing_learned(cells, runs(None))


def test_weights_that_learned_behind_stale_statistics_are_not_said_to_have_learned_nothing() -> (
    None
):
    cells = made([(2, 0.25, 0.1, 0.1), (2, 0.5, 0.11, 0.13)])
    cells["population_test_accuracy"] = [0.1, 0.45]
    said = nothing_learned(cells, runs())
    assert said.startswith("No reported accuracy is beyond chance: the best of 2 cells is right")
    assert "final weights of one cell are right on 45.0 %." in said
    assert "Nothing" not in said


ONE = np.array([1.0])


def fitted(bound: str = "", points: int = 3) -> LimitFit:
    return LimitFit(0.25, 32.0, 0.1, points, bound)


@pytest.mark.parametrize(
    ("fit", "band", "parts"),
    [
        (None, None, ["not fitted: fewer than three batch sizes"]),
        (fitted("upper"), None, ["No fall of the upper end with m can be told", "3 batch sizes"]),
        (fitted("lower"), None, ["falls as 1/m over all", "constant highest η of about 8."]),
        (fitted(), None,
         ["highest η̃ at m = 0.25 / (1 + m/32)", "By this fit", "a constant η of about 8 well"]),
        (fitted(), LimitBand(ONE, ONE, ONE, 16.0, 64.0),
         ["Middle 95 % of m* over resamples of the seeds: 16 … 64"]),
    ],
)  # fmt: skip
def test_a_fit_says_what_its_ends_can_show(
    fit: LimitFit | None, band: LimitBand | None, parts: list[str]
) -> None:
    said = fit_sentence(fit, band)
    assert all(part in said for part in parts)
    assert ("resamples" in said) == (band is not None)


@pytest.mark.parametrize(
    ("rows", "shown", "said"),
    [
        ([(2, 0.25, *GOOD), (2, 0.5, *BAD), (4, 0.25, *GOOD), (4, 0.5, *BAD)], 0.25,
         "the η̃ that is reliable at the most batch sizes (2 of 2 batch sizes; of several"),
        # 0.25 was not tried at m = 4
        ([(2, 0.25, *GOOD), (2, 0.125, *BAD), (4, 0.125, *BAD)], 0.25,
         "(1 of 1 batch size that it was tried at; of several"),
        ([(2, 0.25, *GOOD), (2, 0.5, *BAD)], 0.5,
         "as in the paper's Fig. 4 (reliable at 0 of 1 batch size)"),
        ([(2, 0.25, math.nan, 0.9), (2, 0.5, *BAD)], 0.25,
         "that of the best cell, as no η̃ is reliable at any batch size"),
        ([(2, 0.25, math.nan, math.nan), (2, 0.5, math.nan, math.nan)], 0.25,
         "the lowest tried, as no η̃ is reliable at any batch size"),
    ],
)  # fmt: skip
def test_why_these_curves_are_shown(
    rows: list[tuple[int, float, float, float]], shown: float, said: str
) -> None:
    assert said in convergence_sentence(shown, made(rows))


def test_the_sentence_of_a_tie_and_of_a_lost_seed_from_the_cells_themselves() -> None:
    tie = made([(2, 0.5, *GOOD), (8, 0.5, *GOOD)])
    said = best_sentence(best_by_study(best_cells(tie)).iloc[0].to_dict(), None)
    assert "at m = 2 with" in said
    lost = best_cells(made([(2, 0.5, math.nan, 0.9), (8, 0.5, 0.6, 0.7)]))
    said = best_sentence(best_by_study(lost).iloc[0].to_dict(), None)
    assert "diverged … 90.0 %" in said
