"""Comparisons on numbers whose answers are known, and their power against simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from smallbatch.analysis import comparisons
from smallbatch.analysis.comparisons import Comparison
from smallbatch.analysis.inference import ALPHA, Noise, noise_of_tables
from smallbatch.analysis.power import seeds_needed, smallest_decided

NONE = Noise(np.zeros(()), 0.0)
RNG = np.random.default_rng(0)


def one(values: list[float]) -> np.ndarray:
    return np.array([values])


def t(n: int, alpha: float = ALPHA) -> float:
    return float(stats.t.ppf(1 - alpha, n - 1))


def test_the_best_is_compared_with_every_cell_outside() -> None:
    inside = one([0.6, 0.7, 0.8])
    outside = np.array([[0.5, 0.6, 0.7], [0.45, 0.5, 0.55]])
    found = comparisons.best_is_in(inside, outside, NONE, rivals=2)
    # Against the first the difference is 0.1 at every seed; against the second 0.15, 0.2, 0.25.
    assert found.low == pytest.approx(0.2 - t(3) * 0.05 / math.sqrt(3))
    assert found.effect == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    assert found.margin == comparisons.MARGIN


def test_one_of_many_parts_contradicts_at_its_share_of_the_level() -> None:
    first, second = one([0.1, 0.2, 0.3, 0.2]), one([0.0, 0.4, 0.1, 0.3])
    d = second[0] - first[0]
    alone, among = (comparisons.mean_above([first], [second], k) for k in (1, 3))
    error = d.std(ddof=1) / 2
    assert alone.low == among.low == pytest.approx(-d.mean() - t(4) * error)
    assert alone.high == pytest.approx(-d.mean() + t(4) * error)
    assert among.high == pytest.approx(-d.mean() + t(4, ALPHA / 3) * error)


def test_a_weighted_sum_adds_what_it_says() -> None:
    a, b, c = one([0.5, 0.6]), one([0.2, 0.3]), one([0.1, 0.1])
    found = comparisons.weighted([(1.0, a), (0.5, c)], [(2.0, b)])
    assert found.effect == pytest.approx(0.55 + 0.05 - 0.5)


def test_equivalence_is_two_bounds() -> None:
    first, second = one([0.50, 0.52, 0.54]), one([0.50, 0.51, 0.56])
    found = comparisons.within(first, second, 0.1)
    d = first[0] - second[0]
    error = t(3) * d.std(ddof=1) / math.sqrt(3)
    assert found.effect == pytest.approx(0.1 - abs(d.mean()))
    assert found.low == pytest.approx(0.1 - abs(d.mean()) - error)
    assert found.high == pytest.approx(0.1 - abs(d.mean()) + error)
    far = comparisons.within(first + 0.5, second, 0.1)
    assert far.high < 0
    assert comparisons.within(second, first + 0.5, 0.1).high == pytest.approx(far.high)


def test_a_mean_near_its_target() -> None:
    found = comparisons.mean_within(np.array([1.0, 1.1, 1.2]), 1.0, 0.3)
    assert found.effect == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - t(3) * 0.1 / math.sqrt(3))


def test_a_fraction_of_the_way() -> None:
    """Chance 0.1, top 0.9: half-way is 0.5, which 0.6 exceeds by 0.1 and 0.3 misses by 0.2."""
    top, good, bad = (one([value] * 3) for value in (0.9, 0.6, 0.3))
    everything = np.concatenate([top, good, bad])
    reached = comparisons.of_the_way(good, everything, 0.5, 0.1)
    bounds = [float(it) for it in (reached.low, reached.effect, reached.high)]
    assert bounds == pytest.approx([0.1] * 3)
    missed = comparisons.of_the_way(bad, everything, 0.5, 0.1)
    assert missed.high == pytest.approx(-0.2)
    short, not_short = (
        comparisons.short_of_the_way(cells, everything, 0.5, 0.1) for cells in (bad, good)
    )
    assert short.low == pytest.approx(0.2)
    assert not_short.high == pytest.approx(-0.1)


def test_short_at_the_column_of_the_best_cell() -> None:
    """The best cell is in column 1 of row 0; row 1 has 0.3 there and 0.8 elsewhere."""
    values = np.repeat(np.array([[0.5, 0.9], [0.8, 0.3]])[..., None], 3, axis=-1)
    found = comparisons.short_at_the_best_column(values, 1, 0.5, 0.1, NONE)
    assert found.effect == pytest.approx(0.2)
    assert comparisons.short_at_the_best_column(values, 0, 0.5, 0.1, NONE).high < 0


def test_a_column_that_cannot_be_told_from_the_best_is_judged_as_well() -> None:
    """Two columns as good in row 0; row 1 fails in one of them and works in the other."""
    values = np.repeat(np.array([[0.9, 0.89, 0.2], [0.2, 0.8, 0.2]])[..., None], 3, axis=-1)
    values[0, :2] += np.array([[0.02, -0.02, 0.0], [-0.02, 0.02, 0.0]])
    found = comparisons.short_at_the_best_column(values, 1, 0.5, 0.1, NONE)
    assert found.effect == pytest.approx(0.3)
    assert found.low < 0 < found.high
    values[0] = np.array([0.9, 0.3, 0.2])[:, None]  # now there is no doubt which is best
    assert comparisons.short_at_the_best_column(values, 1, 0.5, 0.1, NONE).low > 0


def test_a_fall_counts_the_step_of_the_grid() -> None:
    """Ranges of 6, 4, 2 octaves at m = 2, 4, 8: a fall of 2, alike at every seed."""
    widths = np.repeat(np.array([[6.0], [4.0], [2.0]]), 3, axis=1)
    found = comparisons.falls(widths, np.array([1.0, 2.0, 3.0]), 2.0)
    rounding = math.sqrt(4 / (4 * 2))
    assert found.effect == pytest.approx(2)
    assert found.low == pytest.approx(2 - t(3) * rounding)
    assert found.high == pytest.approx(2 + t(3) * rounding)


def test_columns_that_cannot_be_told_from_the_best_count() -> None:
    places = np.array([1.0, 2.0, 3.0, 4.0])
    clear = np.array([[0.1] * 3, [0.5] * 3, [0.1] * 3, [0.1] * 3])
    far = clear[[0, 2, 3, 1]]
    noise = Noise(np.array(1e-4), 10.0)
    same = comparisons.near([(places, clear), (places, clear)], 1.5, noise)
    assert (same.effect, same.low, same.high) == (1.5, 1.5, 1.5)
    apart = comparisons.near([(places, clear), (places, far)], 1.5, noise)
    assert (apart.effect, apart.low, apart.high) == (-0.5, -0.5, -0.5)
    unknown = comparisons.near([(places, clear), (places, np.full((4, 3), 0.5))], 1.5, noise)
    assert unknown.low == 1.5 - 3  # any of the four may be the best
    assert unknown.high == 1.5
    single = comparisons.near([(places, clear), (places[:1], clear[:1])], 1.5, noise)
    assert single.high == 0.5


def simulated(
    compare: Callable[[np.ndarray], Comparison], truth: np.ndarray, n: int, draws: int = 2000
) -> float:
    """How often a comparison supports a truth (C,), with noise of one."""
    rng = np.random.default_rng(1)
    values = truth[:, np.newaxis] + rng.normal(size=(draws, len(truth), n))
    found = compare(values)
    return float((found.low > -found.margin).mean())


def test_power_is_what_simulation_shows() -> None:
    """A mean difference of two with a noise of one, three rivals: the seeds named are enough."""
    truth = np.array([2.0, 0.0, 0.0, 0.0])

    def compare(values: np.ndarray) -> Comparison:
        noise = noise_of_tables([values])
        cells = values[..., :1, :], values[..., 1:, :]
        return comparisons.best_is_in(*cells, noise, margin=1.0, rivals=3)

    found = compare(np.random.default_rng(2).normal(size=(4, 300)))  # the noise, well known
    named = seeds_needed(found, 300, 2.0)
    assert named is not None
    assert simulated(compare, truth, named) >= 0.78
    assert simulated(compare, truth, named - 2) < 0.78
    # Half of true effects as large as the smallest that can be decided are, where one must.
    alone = lambda values: comparisons.mean_above([values[..., :1, :]], [values[..., 1:, :]])  # noqa: E731
    found = alone(np.random.default_rng(2).normal(size=(2, 3000)))
    edge = smallest_decided(found, 8)
    assert simulated(alone, np.array([edge, 0.0]), 8) == pytest.approx(0.5, abs=0.06)


def test_where_there_is_no_noise_nothing_is_said_of_power() -> None:
    found = Comparison(np.array(1.0), np.array(1.0), np.array(1.0))
    assert math.isnan(smallest_decided(found, 3))
    assert seeds_needed(found, 3, 0.02) is None
    zero = np.array(0.0)
    noisy = Comparison(zero, zero, zero, spread=100.0)
    assert seeds_needed(noisy, 3, 0.02) is None
    exact = Comparison(zero, zero, zero, spread=0.0)
    assert seeds_needed(exact, 3, 0.02) == 3
