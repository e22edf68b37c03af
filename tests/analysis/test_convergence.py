"""Where a curve ends: because its median fell on a diverged run, or because training was over."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from smallbatch.analysis.convergence import CURVES, common_base_lr, median_curves


def history(*runs: tuple[int, int, bool], loss: float = 1.0) -> pd.DataFrame:
    """Runs of one η̃: m, epochs, and whether the run diverged in the last of them."""
    rows = [
        {"run": str(number), "batch_size": m, "base_lr": 0.5, "epoch": epoch, "updates": 10 * epoch,
         "outcome": "diverged" if diverged else "finished",
         **dict.fromkeys(("test_accuracy", "train_loss", "train_accuracy"),
                         math.nan if diverged and epoch == epochs else loss)}
        for number, (m, epochs, diverged) in enumerate(runs) for epoch in range(1, epochs + 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def diverged_in(*runs: tuple[int, int, bool]) -> dict[int, list[int]]:
    """The epochs that are marked, for each m."""
    curves = median_curves(history(*runs))
    assert tuple(curves.columns) == CURVES
    marked = curves[curves["diverged"]]
    assert marked["test_accuracy"].isna().all()
    return {int(str(m)): own["epoch"].tolist() for m, own in marked.groupby("batch_size")}


@pytest.mark.parametrize(
    ("runs", "marked"),
    [
        # equal updates: the smaller m has fewer epochs and ends before the other
        ([(2, 2, False), (8, 4, False)], {}),
        # the same, and the larger m diverges in its third of four epochs
        ([(2, 2, False), (8, 3, True), (8, 4, False), (8, 3, True)], {8: [3, 4]}),
        # all seeds of one m diverge: its rows end there
        ([(2, 4, False), (8, 2, True), (8, 1, True)], {8: [1, 2]}),
        # one of three seeds: the median is that of a finished run
        ([(2, 4, False), (2, 4, False), (2, 1, True)], {}),
        # one of two: half-way between a number and none there is none
        ([(2, 4, False), (2, 3, True)], {2: [3, 4]}),
        # one of three, then a second
        ([(2, 4, False), (2, 2, True), (2, 3, True)], {2: [3, 4]}),
        # in the first epoch already
        ([(2, 1, True)], {2: [1]}),
        # of an older training: fewer epochs at the same m
        ([(2, 2, False), (2, 4, False)], {}),
    ],
)
def test_a_curve_is_marked_from_where_its_median_diverged(
    runs: list[tuple[int, int, bool]], marked: dict[int, list[int]]
) -> None:
    assert diverged_in(*runs) == marked


def test_a_measure_that_is_missing_does_not_make_a_curve_diverged() -> None:
    curves = median_curves(history((2, 2, False), loss=math.nan))
    assert curves["train_loss"].isna().all()
    assert not curves["diverged"].any()


def cells(rows: list[tuple[float, float, bool]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["base_lr", "accuracy", "reliable"])


@pytest.mark.parametrize(
    ("rows", "base_lr"),
    [
        ([(0.1, 0.9, True), (0.2, 0.8, True), (0.4, 0.9, False)], 0.2),
        # none is reliable: that of the best cell, not the largest, which diverges at once
        ([(0.1, 0.5, False), (0.2, 0.9, False), (0.4, math.nan, False)], 0.2),
        ([(0.2, 0.9, False), (0.1, 0.9, False), (0.4, math.nan, False)], 0.1),
        ([(0.2, math.nan, False), (0.1, math.nan, False)], 0.1),
    ],
)
def test_the_curves_shown_are_of_a_learning_rate_that_has_some(
    rows: list[tuple[float, float, bool]], base_lr: float
) -> None:
    assert common_base_lr(cells(rows)) == base_lr
