from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from smallbatch.analysis.limit_band import fit_band, interval, resamples
from smallbatch.analysis.seeds import seed_array
from tests.analysis.test_claims import runs_of

LRS = tuple(2.0**k for k in range(-14, 1))
MS = (2, 8, 32, 128, 512)


def study(m_star: tuple[float, float, float], seeds: int = 3) -> pd.DataFrame:
    """Runs that are good up to η̃ = 2⁻⁴/(1 + m/m*), m* of each seed, and diverge beyond."""

    def accuracy(m: int, lr: float, seed: int) -> float | None:
        return 0.8 if math.log2(lr) <= -4 - math.log2(1 + m / m_star[seed]) + 0.5 else None

    return pd.DataFrame(runs_of("2", accuracy, ms=MS, lrs=LRS, seeds=seeds))


def test_seeds_that_agree_leave_no_band() -> None:
    band = fit_band(seed_array(study((32, 32, 32))))
    assert band is not None
    np.testing.assert_array_equal(band.low, band.high)
    assert band.m_star_low == band.m_star_high
    # To the grid's step of one octave, the limit that the runs were made with.
    true = 2.0**-4 / (1 + band.batch_sizes / 32)
    assert np.abs(np.log2(band.low / true)).max() < 1


def test_the_band_spans_seeds_that_differ() -> None:
    band = fit_band(seed_array(study((8, 32, 128))))
    assert band is not None
    assert band.m_star_low < band.m_star_high
    # A range holds for every seed, so the seed with the lowest limit decides when it is drawn.
    assert band.low[-1] == pytest.approx(2.0**-4 / (1 + 512 / 8), rel=0.6)
    assert band.high[-1] > 4 * band.low[-1]


def test_two_seeds_or_two_batch_sizes_give_no_band() -> None:
    assert fit_band(seed_array(study((32, 32, 32), seeds=2))) is None
    assert fit_band(seed_array(study((32, 32, 32)).query("batch_size <= 8"))) is None


def test_an_upper_end_at_the_edge_of_its_own_grid_is_left_out() -> None:
    """What lies beyond was not tried there; the fit beside the band leaves it out too."""
    runs = study((32, 32, 32))
    whole = fit_band(seed_array(runs.query("batch_size <= 128")))
    narrow = runs["batch_size"].eq(512) & runs["base_lr"].gt(2.0**-12)
    cut = fit_band(seed_array(runs[~narrow]))
    assert whole is not None
    assert cut is not None
    assert (cut.m_star_low, cut.m_star_high) == (whole.m_star_low, whole.m_star_high)


def test_three_seeds_give_their_range() -> None:
    """By hand: of the 27 resamples 7 hold the lowest seed twice or more, 7 the highest."""
    values = np.array([0.1, 0.5, 0.3])
    assert len(resamples(3)) == 27
    assert interval(np.median(values[resamples(3)], axis=1)) == (0.1, 0.5)


def test_many_seeds_give_the_usual_bootstrap_interval() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).normal(0.3, 0.1, 12)
    low, high = interval(values[resamples(12)].mean(axis=1))
    usual = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (low, high) == pytest.approx((usual.low, usual.high), abs=0.01)
