"""Comparisons of single learning rates on numbers whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from smallbatch.analysis import comparisons_rates
from smallbatch.analysis.comparisons import MARGIN
from smallbatch.analysis.inference import ALPHA, Noise

NONE = Noise(np.zeros(()), 0.0)
SPREAD = np.array([-0.01, 0.0, 0.01])  # by seed


def t(alpha: float) -> float:
    return float(stats.t.ppf(1 - alpha, 2))


def around(*means: float) -> np.ndarray:
    """Cells (C, 3) whose seeds differ from these means alike."""
    return np.array(means)[:, np.newaxis] + SPREAD


def test_the_best_place_counts_and_there_the_worst_column() -> None:
    # At the last two of four columns the better row is ahead by 0.05 and 0.02.
    inside = np.stack([around(0.9, 0.3, 0.85, 0.1), around(0.1, 0.3, 0.2, 0.82)])
    outside = np.full((1, 3), 0.8)
    found = comparisons_rates.best_at_neighbours(inside, outside, NONE, 2, k=4)
    error = 0.01 / math.sqrt(3)
    assert found.effect == pytest.approx(0.02)
    # The grid has three places; one of two columns contradicts, of each of four parts, and at half
    # of what that leaves.
    assert found.low < 0.02 - t(ALPHA / 3) * error * (1 - 1e-9)
    assert found.high == pytest.approx(0.02 + t(ALPHA / 16) * error)
    assert found.margin == MARGIN
    alone = comparisons_rates.best_at_neighbours(inside[1:], outside, NONE, 1)
    assert alone.effect == pytest.approx(0.02)
    assert alone.low == pytest.approx(0.02 - t(ALPHA / 4) * error)
    assert alone.high == pytest.approx(0.02 + t(ALPHA / 2) * error)


def test_a_good_column_without_a_neighbour_makes_no_range() -> None:
    inside = around(0.2, 0.9, 0.2, 0.9, 0.2)[np.newaxis]
    found = comparisons_rates.best_at_neighbours(inside, np.full((1, 3), 0.8), NONE, 2)
    assert found.high < 0
    assert found.effect == pytest.approx(-0.6)


def test_what_is_lost_is_the_best_less_the_best_three_neighbours() -> None:
    sharp, blunt = around(0.1, 0.4, 0.7, 0.4, 0.1), around(0.1, 0.5, 0.6, 0.55, 0.1)
    flat = around(0.2, 0.6, 0.6, 0.6, 0.2)
    # 0.7 - (0.4 + 0.7 + 0.4)/3 = 0.2; 0.6 - (0.5 + 0.6 + 0.55)/3 = 0.05; 0.
    found = comparisons_rates.more_sensitive(sharp, [blunt, flat], 3, 0.02)
    assert found.effect == pytest.approx(0.2 - 0.05 / 2 - 0.02)
    assert found.low == pytest.approx(found.effect)  # the seeds differ alike in all cells
    assert found.high == pytest.approx(found.effect)
    other = comparisons_rates.more_sensitive(flat, [sharp], 3, 0.02)
    assert other.high == pytest.approx(-0.22)


def test_a_row_need_not_work_where_no_other_does() -> None:
    """The threshold is half of 0.8: where others are below it, or the row is above."""
    one = around(0.7, 0.5, 0.1)
    others = np.stack([around(0.8, 0.7, 0.1), around(0.6, 0.2, 0.3)])
    everything = others.reshape(-1, 3)
    found = comparisons_rates.works_wherever(one, others, everything, 0.5, 0.0)
    # By column: 0.7 - 0.4; 0.5 - 0.4; the others' best 0.3 is 0.1 short.
    assert found.effect == pytest.approx(0.1)
    assert found.low > 0
    fails = comparisons_rates.works_wherever(around(0.7, 0.1, 0.1), others, everything, 0.5, 0.0)
    # It falls short by 0.3 where another is 0.3 above: the nearer of the two counts, both alike.
    assert fails.effect == pytest.approx(-0.3)
    assert fails.high < 0


def test_two_unknowns_contradict_nothing() -> None:
    """Neither that the row fails nor that another works is known."""
    wide = np.array([-0.2, 0.0, 0.2])
    one, others = (0.39 + wide)[np.newaxis], np.array([[[0.41, 0.41, 0.41]]])
    found = comparisons_rates.works_wherever(one, others, np.full((1, 3), 0.8), 0.5, 0.0)
    assert found.effect < 0 < found.high
    assert found.low < 0
