"""A confidence band for the fitted upper end of the reliable range, by bootstrap over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.cells import MAIN_FRACTION
from smallbatch.analysis.seeds import Floats, interval, resamples
from smallbatch.analysis.stability import LimitFit, fit_limit

if TYPE_CHECKING:
    from smallbatch.analysis.seeds import SeedArray

MIN_SEEDS = 3


@dataclass(frozen=True)
class LimitBand:
    """The pointwise 95 % band of η̃_max(m) = η̃₀/(1 + m/m*).

    Attributes:
        batch_sizes: The m at which the band is given.
        low, high: The band's η̃ at these m.
        m_star_low, m_star_high: The confidence interval of m*.
    """

    batch_sizes: Floats
    low: Floats
    high: Floats
    m_star_low: float
    m_star_high: float


def fit_band(array: SeedArray, fraction: float = MAIN_FRACTION) -> LimitBand | None:
    """Fit the upper ends anew in every resample of the seeds.

    Returns:
        The band; None with fewer than three seeds, or if a resample has fewer than three batch
        sizes to fit.
    """
    if len(array.seeds) < MIN_SEEDS:
        return None
    picks = resamples(len(array.seeds))
    reliable = array.reliable(picks, fraction)
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
