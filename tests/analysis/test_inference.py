"""The statistics of verdicts, by hand and against SciPy's tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from smallbatch.analysis.inference import (
    ALPHA,
    Noise,
    cross_fitted,
    dependence,
    hindsight,
    is_at_chance,
    lower,
    noise,
    noise_of_tables,
    spread,
)

# Three cells of three seeds. Means 2, 3, 2.7: in hindsight the second is best.
CELLS = np.array([[4.0, 1.0, 1.0], [0.0, 6.0, 3.0], [2.0, 2.0, 4.1]])


def test_hindsight_takes_the_cell_of_the_highest_mean() -> None:
    assert hindsight(CELLS).tolist() == [0.0, 6.0, 3.0]


def test_cross_fitting_takes_at_each_seed_the_best_of_the_others() -> None:
    """By hand: without seed 0 sums are 2, 9, 6.1; without 1: 5, 3, 6.1; without 2: 5, 6, 4."""
    assert cross_fitted(CELLS).tolist() == [0.0, 2.0, 3.0]


def test_cross_fitting_never_flatters() -> None:
    cells = np.random.default_rng(0).normal(size=(500, 6, 4))
    assert (cross_fitted(cells) <= hindsight(cells) + 1e-12).all()
    # All cells are equal in truth: hindsight makes a winner of noise, cross-fitting does not.
    assert hindsight(cells).mean() > 0.5
    assert abs(cross_fitted(cells).mean()) < 0.08


def test_a_single_seed_is_its_own_choice() -> None:
    cells = CELLS[:, :1]
    assert cross_fitted(cells).tolist() == hindsight(cells).tolist() == [4.0]
    assert lower(cells).tolist() == [-np.inf] * 3


def test_the_bound_is_that_of_students_t() -> None:
    d = np.random.default_rng(1).normal(0.3, 1, 7)
    expected = stats.ttest_1samp(d, 0, alternative="greater").confidence_interval(1 - ALPHA).low
    assert lower(d) == pytest.approx(expected)
    halved = stats.ttest_1samp(d, 0, alternative="greater").confidence_interval(1 - ALPHA / 2).low
    assert lower(d, k=2) == pytest.approx(halved)


def test_a_known_noise_is_worth_its_degrees_of_freedom() -> None:
    """By hand: d has variance 1 with 2 degrees, the study says 2·8 with 4: (4·16 + 2·1)/6 = 11."""
    d = np.array([1.0, 2.0, 3.0])
    of = Noise(np.array(8.0), 12.0)
    assert spread(d, of, 2) == pytest.approx(np.sqrt(11))
    expected = 2 - stats.t.ppf(1 - ALPHA, 6) * np.sqrt(11 / 3)
    assert lower(d, of, 2) == pytest.approx(expected)
    assert spread(d, Noise(np.array(8.0), 0.0), 2) == pytest.approx(1)


def test_noise_is_what_is_left_of_a_two_way_table() -> None:
    """An analysis of variance by a regression on dummies gives the same residual variance."""
    rng = np.random.default_rng(2)
    table = rng.normal(size=(5, 4)) + 10 * rng.normal(size=(5, 1)) + 10 * rng.normal(size=(1, 4))
    design = np.array(
        [[float(b == i) for i in range(5)] + [float(s == j) for j in range(1, 4)]
         for b in range(5) for s in range(4)]
    )  # fmt: skip
    residual = table.ravel() - design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
    found = noise_of_tables([table])
    assert found.variance == pytest.approx((residual**2).sum() / 12)
    assert found.freedom == 12 - 3  # a difference of two rows has three of its own


def test_two_batch_sizes_know_no_more_than_their_difference() -> None:
    table = np.random.default_rng(3).normal(size=(2, 6))
    assert noise_of_tables([table]).prior == 0
    d = table[0] - table[1]
    assert 2 * noise_of_tables([table]).variance == pytest.approx(d.var(ddof=1))


def test_noise_is_of_the_best_cell_of_each_row_and_pooled() -> None:
    rng = np.random.default_rng(4)
    rows = [rng.normal(size=(3, 5)), rng.normal(size=(2, 5))]
    table = np.array([hindsight(cells) for cells in rows])
    assert noise(rows).variance == pytest.approx(noise_of_tables([table]).variance)
    first, second = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    pooled = noise_of_tables([first, second, np.ones((1, 5))])
    alone = [noise_of_tables([each]).variance for each in (first, second)]
    assert pooled.variance == pytest.approx((8 * alone[0] + 12 * alone[1]) / 20)
    assert pooled.freedom == 20 - 4
    assert noise_of_tables([np.ones((1, 5))]).prior == 0


def test_data_sets_are_judged_at_once_as_one_by_one() -> None:
    many = np.random.default_rng(6).normal(size=(7, 4, 3, 5))
    tables = many[:, :, 0]
    together = noise_of_tables([tables])
    d = many[:, 0] - many[:, 1]
    bounds = lower(d, together, 2)
    assert bounds.shape == (7, 3)
    for index in range(7):
        alone = noise_of_tables([tables[index]])
        assert together.variance[index] == pytest.approx(float(alone.variance))
        assert bounds[index] == pytest.approx(lower(d[index], alone, 2))
        assert cross_fitted(many)[index] == pytest.approx(cross_fitted(many[index]))


@pytest.mark.parametrize(("cells", "seeds"), [(2, 8), (6, 8), (13, 8), (13, 16), (48, 16)])
def test_cross_fitted_values_depend_on_each_other(cells: int, seeds: int) -> None:
    """The mean's variance over that of as many independent values, relative to three seeds."""
    rng = np.random.default_rng(7)

    def inflation(n: int) -> float:
        values = cross_fitted(rng.normal(size=(10_000, cells, n)))
        return float(values.mean(axis=-1).var() / (values.var(axis=-1, ddof=1).mean() / n))

    found = inflation(seeds) / inflation(3)
    assert dependence(seeds, cells) == pytest.approx(found, rel=0.12)
    assert dependence(3, cells) == dependence(2, cells) == dependence(seeds, 1) == 1


def test_more_cells_to_choose_from_widen_the_bound() -> None:
    d = np.random.default_rng(8).normal(0.3, 1, 8)
    wider = d.mean() - lower(d, chosen=6)
    assert wider == pytest.approx((d.mean() - lower(d)) * np.sqrt(dependence(8, 6)))


@pytest.mark.parametrize("images", [7, 360, 10_000])
def test_chance_is_what_a_guess_reaches_by_luck(images: int) -> None:
    """Against SciPy's test of a proportion, at each accuracy that there can be around the bound."""
    shown = set[bool]()
    for right in range(min(images, 1200) + 1):
        tested = float(stats.binomtest(right, images, 0.1, alternative="greater").pvalue)
        assert is_at_chance(right / images, images, 0.1) == (tested > 0.01)
        shown.add(tested > 0.01)
    assert shown == {True, False}
