"""How much the fitted upper end of the reliable range varies between resamples of the seeds.

The middle 95 % of resamples is not a confidence interval: of few seeds it covers the truth less
often. It shows how far the fit hangs on single seeds, and no verdict is made of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from smallbatch.analysis.stability import LimitFit, fit_limit

if TYPE_CHECKING:
    from smallbatch.analysis.seeds import Floats, SeedArray

Picks: TypeAlias = npt.NDArray[np.intp]

MIN_SEEDS = 3

# With at most so many seeds all nⁿ resamples with replacement are used; all are equally likely.
ENUMERATED_SEEDS = 4
RANDOM_RESAMPLES = 2000
MIDDLE = 0.95


@dataclass(frozen=True)
class LimitBand:
    """The middle 95 % of resamples, at each m, of η̃_max(m) = η̃₀/(1 + m/m*).

    Attributes:
        batch_sizes: The m at which the band is given.
        low, high: The band's η̃ at these m.
        m_star_low, m_star_high: The middle 95 % of m*.
    """

    batch_sizes: Floats
    low: Floats
    high: Floats
    m_star_low: float
    m_star_high: float


def fit_band(array: SeedArray) -> LimitBand | None:
    """Fit the upper ends anew in every resample of the seeds.

    Returns:
        The band; None with fewer than three seeds, or if a resample has fewer than three batch
        sizes to fit.
    """
    if len(array.seeds) < MIN_SEEDS:
        return None
    picks = resamples(len(array.seeds))
    reliable = array.reliable(picks)
    # Index of the highest reliable η̃ of each m in each resample; -1 if none is reliable.
    last = reliable.shape[1] - 1
    ends = np.where(reliable.any(axis=1), last - reliable[:, ::-1].argmax(axis=1), -1)
    fits: dict[tuple[int, ...], LimitFit | None] = {}
    for upper in {tuple(column) for column in ends.T.tolist()}:
        fits[upper] = _fit(array, np.array(upper))
    found = [fits[tuple(column)] for column in ends.T.tolist()]
    whole = [fit for fit in found if fit is not None]
    if len(whole) < len(found):
        return None
    low, high = float(array.batch_sizes[0]), float(array.batch_sizes[-1])
    batch_sizes: Floats = np.geomspace(low, high, 60)
    curves = np.array([fit(batch_sizes) for fit in whole])
    bounds = np.array([interval(curve) for curve in curves.T])
    m_star_low, m_star_high = interval(np.array([fit.m_star for fit in whole]))
    return LimitBand(batch_sizes, bounds[:, 0], bounds[:, 1], m_star_low, m_star_high)


def _fit(array: SeedArray, upper: np.ndarray) -> LimitFit | None:
    # Where the highest η̃ tried at that m is reliable, the range may be wider.
    tried = np.isfinite(array.values).any(axis=-1) | np.isneginf(array.values).any(axis=-1)
    highest = np.where(tried, np.arange(len(array.columns)), -1).max(axis=1)
    inside = (upper >= 0) & (upper < highest)
    if inside.sum() < 3:
        return None
    log_upper = np.log2(array.columns[upper[inside]])
    return fit_limit(array.batch_sizes[inside].astype(float), log_upper)


def resamples(n: int) -> Picks:
    """Picks of n seeds with replacement, (R, n): all of them, or many at random."""
    if n <= ENUMERATED_SEEDS:
        return np.array(list(itertools.product(range(n), repeat=n)), dtype=np.intp)
    generator = np.random.Generator(np.random.PCG64(0))
    return generator.integers(0, n, size=(RANDOM_RESAMPLES, n))


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    tail = (1 - MIDDLE) / 2
    low = np.quantile(values, tail, method="lower")
    high = np.quantile(values, 1 - tail, method="higher")
    return float(low), float(high)
