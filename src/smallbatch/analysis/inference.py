"""The statistics of every verdict: choices that do not flatter, and bounds whose error is known.

Accuracies are arrays ``(..., C, S)`` of C cells and S seeds; dimensions before these are data sets
that are judged at once, as `benchmarks/verdicts` does. A maximum over many cells is above its
true value, because noise helps the one that is chosen. So a side that a statement speaks for is
*cross-fitted*: at each seed it gets the cell that is best over the other seeds. The side it speaks
against is chosen *in hindsight*, over all seeds. The error rates of what follows from it are in
``results/verdicts``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.analysis.seeds import Floats

ALPHA = 0.015
"""The nominal error of one bound; `results/verdicts` has that of verdicts, in the worst cases."""

PRIOR = 4.0
"""Most degrees of freedom that the study's noise adds to a difference's own n - 1."""


@dataclass(frozen=True)
class Noise:
    """The noise of one accuracy, known from a whole study.

    Attributes:
        variance: Of one run's reported accuracy around its cell and seed (...).
        freedom: Degrees of freedom beyond those that a difference of two cells has of its own:
            of two batch sizes the study knows no more than their difference does.
    """

    variance: Floats
    freedom: float

    @property
    def prior(self) -> float:
        """The degrees of freedom it adds to a difference."""
        return min(PRIOR, self.freedom)


def hindsight(cells: Floats) -> Floats:
    """The accuracies (..., S) of the cell with the highest mean over all seeds."""
    best = cells.mean(axis=-1).argmax(axis=-1)[..., np.newaxis, np.newaxis]
    chosen: Floats = np.take_along_axis(cells, best, axis=-2)[..., 0, :]
    return chosen


def cross_fitted(cells: Floats) -> Floats:
    """At each seed the accuracy of the cell with the highest mean over the other seeds (..., S).

    Never above `hindsight`, at any seed. Of a single seed it is the same.
    """
    if cells.shape[-1] == 1:
        return hindsight(cells)
    best = without_each_seed(cells).argmax(axis=-2)[..., np.newaxis, :]
    chosen: Floats = np.take_along_axis(cells, best, axis=-2)[..., 0, :]
    return chosen


def without_each_seed(cells: Floats) -> Floats:
    """The mean over the other seeds, for each seed: of the shape of ``cells``."""
    return (cells.sum(axis=-1, keepdims=True) - cells) / (cells.shape[-1] - 1)


def noise(rows: Sequence[Floats]) -> Noise:
    """The noise of a study, from the best cell of each batch size.

    Args:
        rows: The cells of each batch size (..., C, S).
    """
    return noise_of_tables([np.stack([hindsight(cells) for cells in rows], axis=-2)])


def noise_of_tables(tables: Sequence[Floats]) -> Noise:
    """The residual variance of two-way tables (..., B, S), pooled.

    What a batch size has at every seed, and a seed at every batch size, is not noise. A table of
    one row says nothing.
    """
    tables = [table for table in tables if min(table.shape[-2:]) > 1]
    if not tables:
        return Noise(np.zeros(()), 0.0)
    total, freedom = np.zeros(()), 0
    for table in tables:
        rows, seeds = table.shape[-2:]
        residual = table - table.mean(axis=-1, keepdims=True) - table.mean(axis=-2, keepdims=True)
        residual = residual + table.mean(axis=(-2, -1), keepdims=True)
        total = total + (residual**2).sum(axis=(-2, -1))
        freedom += (rows - 1) * (seeds - 1)
    own = tables[0].shape[-1] - 1
    return Noise(np.asarray(total / freedom), float(freedom - own))


def spread(d: Floats, of: Noise | None = None, factor: float = 0.0) -> Floats:
    """The standard deviation of one seed's difference, shrunk towards that known from the study.

    Args:
        d: Differences by seed (..., S).
        of: The study's noise; None for the differences' own variance alone.
        factor: The variance of one difference in units of the noise's.
    """
    n = d.shape[-1]
    own = d.var(axis=-1, ddof=1)
    if of is None or not of.prior:
        return np.sqrt(own)
    known = factor * of.variance
    known = known.reshape(known.shape + (1,) * (own.ndim - known.ndim))
    return np.sqrt((of.prior * known + (n - 1) * own) / (of.prior + n - 1))


def dependence(n: int, chosen: int) -> float:
    """How much more the mean of n cross-fitted values varies than if these were independent.

    A seed at which a cell does well makes other seeds choose it. Of equal cells the mean's variance
    grows, with more seeds and more cells, relative to what three seeds have, about as this factor
    (simulated for 2 to 48 cells and 3 to 16 seeds). With three seeds Student's t covers it.

    Args:
        n: The number of seeds.
        chosen: Among how many cells.
    """
    return 1 + math.log2(chosen) * math.log2(max(n, 3) / 3) / 12


def lower(
    d: Floats, of: Noise | None = None, factor: float = 0.0, k: float = 1, chosen: int = 1
) -> Floats:
    """A lower bound (...) of the mean of differences, each wrong in a share ``ALPHA / k``.

    Student's t with the shrunken standard deviation of `spread` and n - 1 degrees of freedom plus
    those of the noise.

    Args:
        d: Differences by seed (..., S).
        of: The study's noise, if known.
        factor: As `spread` takes it.
        k: The number of bounds of which any one decides (Bonferroni).
        chosen: Among how many cells the cross-fitted side was chosen.
    """
    n = d.shape[-1]
    if n == 1:
        return np.full(d.shape[:-1], -np.inf)
    freedom = n - 1 + (of.prior if of is not None else 0.0)
    quantile = stdtrit(freedom, 1 - ALPHA / k)
    error = spread(d, of, factor) * math.sqrt(dependence(n, chosen) / n)
    bound: Floats = d.mean(axis=-1) - quantile * error
    return bound
