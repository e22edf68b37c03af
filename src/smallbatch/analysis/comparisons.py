"""The comparisons that claims are made of, each with bounds that hold where statements are judged.

Accuracies are arrays ``(..., C, S)``, as in `inference`. A comparison's effect is above 0 where its
statement holds. ``k`` is the number of parts that a claim has: all of them are needed for support,
which needs no correction, and any one contradicts, so that each may do so at the level / k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from smallbatch.analysis.inference import (
    ALPHA,
    Noise,
    cross_fitted,
    hindsight,
    lower,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smallbatch.analysis.seeds import Floats

MARGIN = 0.01
"""A difference of accuracies that does not matter: one percentage point."""


@dataclass(frozen=True)
class Comparison:
    """An effect with bounds; arrays (...) if several data sets are judged at once.

    Attributes:
        effect: As observed.
        low: The statement is supported if this is above -margin, strictly if above 0.
        high: The statement is contradicted if this is below 0.
        margin: How far the statement may fail and still count as supported.
        spread: The standard deviation of one seed's difference, of the bound that supports; NaN
            where there is none.
        prior: Degrees of freedom that the study's noise added.
        chosen: Among how many cells the side that support speaks for was chosen.
        rivals: How many comparisons must all succeed for support.
        loss: By how much the supporting side's cross-fitted best is below that in hindsight.
        most: The largest effect there can be.
    """

    effect: Floats
    low: Floats
    high: Floats
    margin: float = 0.0
    spread: Floats | float = np.nan
    prior: float = 0.0
    chosen: int = 1
    rivals: int = 1
    loss: Floats | float = 0.0
    most: float = np.inf


def best_is_in(
    inside: Floats, outside: Floats, of: Noise, k: int = 1, margin: float = MARGIN, rivals: int = 1
) -> Comparison:
    """Whether no cell outside is better than the best inside, by ``margin``.

    Every cell of the losing side is compared with the winning side's cross-fitted best, and the
    least bound counts (intersection-union).
    """
    ahead = cross_fitted(inside)[..., np.newaxis, :] - outside
    behind = cross_fitted(outside)[..., np.newaxis, :] - inside
    best = hindsight(inside) - hindsight(outside)
    return Comparison(
        effect=best.mean(axis=-1),
        low=lower(ahead, of, 2, chosen=inside.shape[-2]).min(axis=-1),
        high=-lower(behind, of, 2, k, outside.shape[-2]).min(axis=-1),
        margin=margin,
        spread=_one(cross_fitted(inside) - hindsight(outside), of, 2),
        prior=of.prior,
        chosen=inside.shape[-2],
        rivals=rivals,
        loss=_loss(inside),
    )


def weighted(
    plus: Sequence[tuple[float, Floats]], minus: Sequence[tuple[float, Floats]], k: int = 1
) -> Comparison:
    """Whether a weighted sum of best accuracies exceeds another, such as a mean over batch sizes.

    Args:
        plus: Weights and cells (..., C, S) of which the best counts.
        minus: The same, to be subtracted.
        k: The number of parts of the claim.
    """
    return _between(
        _sum(plus, cross_fitted) - _sum(minus, hindsight),
        _sum(plus, hindsight) - _sum(minus, cross_fitted),
        _sum(plus, hindsight) - _sum(minus, hindsight),
        k,
        _most(plus),
        _most(minus),
    )


def mean_above(winners: Sequence[Floats], losers: Sequence[Floats], k: int = 1) -> Comparison:
    """Whether best accuracies exceed others on average, such as over batch sizes."""
    return weighted(
        [(1 / len(winners), cells) for cells in winners],
        [(1 / len(losers), cells) for cells in losers],
        k,
    )


def within(
    first: Floats, second: Floats, width: float, of: Noise | None = None, k: int = 1
) -> Comparison:
    """Whether two best accuracies differ by less than ``width``: equivalence by two bounds."""
    gap = hindsight(first) - hindsight(second)
    sides = [(first, second), (second, first)]
    support, against = (
        [
            lower(cross_fitted(one) - hindsight(other), of, 2, share, one.shape[-2])
            for one, other in sides
        ]
        for share in (1, k)
    )
    return Comparison(
        effect=width - np.abs(gap.mean(axis=-1)),
        low=width + np.minimum(*support),
        high=width - np.maximum(*against),
        spread=np.maximum(*(_one(cross_fitted(a) - hindsight(b), of, 2) for a, b in sides)),
        prior=of.prior if of is not None else 0.0,
        chosen=max(first.shape[-2], second.shape[-2]),
        rivals=2,
        loss=np.maximum(_loss(first), _loss(second)),
        most=width,
    )


def mean_within(values: Floats, target: float, width: float, k: int = 1) -> Comparison:
    """Whether the mean of values (..., S) is less than ``width`` from a target."""
    cells = (values - target)[..., np.newaxis, :]
    return within(cells, np.zeros_like(cells), width, k=k)


def of_the_way(
    cells: Floats, everything: Floats, fraction: float, chance: float, k: int = 1
) -> Comparison:
    """Whether the best of some cells gets a fraction of the way from chance to the best of all.

    The effect is the best accuracy less chance + fraction·(top - chance). With a small fraction the
    noise is that of these cells alone, which the study's does not tell.
    """

    def ahead(own: Floats, top: Floats) -> Floats:
        return own - chance - fraction * (top - chance)

    return _between(
        ahead(cross_fitted(cells), hindsight(everything)),
        ahead(hindsight(cells), cross_fitted(everything)),
        ahead(hindsight(cells), hindsight(everything)),
        k,
        cells.shape[-2],
        everything.shape[-2],
    )


def short_of_the_way(
    cells: Floats, everything: Floats, fraction: float, chance: float, k: int = 1
) -> Comparison:
    """Whether the best of some cells gets less than a fraction of the way; see `of_the_way`."""

    def behind(own: Floats, top: Floats) -> Floats:
        return chance + fraction * (top - chance) - own

    return _between(
        behind(hindsight(cells), cross_fitted(everything)),
        behind(cross_fitted(cells), hindsight(everything)),
        behind(hindsight(cells), hindsight(everything)),
        k,
        everything.shape[-2],
        cells.shape[-2],
    )


def short_at_the_best_column(
    values: Floats, row: int, fraction: float, chance: float, of: Noise, k: int = 1
) -> Comparison:
    """Whether one row fails at the column of the best cell of all, such as its learning rate.

    Which column that is, noise decides as well. Columns are left out that the others' cross-fitted
    best exceeds; at all that are left the row must fail for support, and work for contradiction.
    The effect is chance + fraction·(top - chance) less the row's accuracy at the best column.

    Args:
        values: Accuracies (..., B, C, S) of all cells; none is missing.
        row: The row that is judged.
        fraction: Of the way from chance to the best cell.
        chance: The accuracy of guessing.
        of: The study's noise.
        k: The number of parts of the claim.
    """
    everything = _merged(values)
    chosen = everything.shape[-2]
    best = hindsight(everything)
    low, high = [], []
    for column in range(values.shape[-2]):
        own = values[..., column, :]
        others = _merged(np.delete(values, column, axis=-2))
        left = np.ones(values.shape[:-3], dtype=bool)
        if others.shape[-2]:
            lead = cross_fitted(others)[..., np.newaxis, :] - own
            # At a quarter of the level: the noise of one or two m may be far above the study's.
            left = lower(lead, of, 2, 4, others.shape[-2]).min(axis=-1) <= 0
        there = values[..., row, column, :]
        tops = (chance + fraction * (top - chance) for top in (cross_fitted(everything), best))
        below, above = (top - there for top in tops)
        low.append(np.where(left, lower(below, chosen=chosen), np.inf))
        high.append(np.where(left, -lower(-above, k=k), -np.inf))
    place = everything.mean(axis=-1).argmax(axis=-1) % values.shape[-2]
    at = values[..., row, :, :].mean(axis=-1)
    effect = chance + fraction * (best.mean(axis=-1) - chance)
    return Comparison(
        effect=effect - np.take_along_axis(at, place[..., np.newaxis], axis=-1)[..., 0],
        low=np.min(low, axis=0),
        high=np.max(high, axis=0),
    )


def falls(widths: Floats, log_m: Floats, step: float, k: int = 1) -> Comparison:
    """Whether widths fall with log₂ m; the effect is the fall per doubling, by least squares.

    The grid rounds every width, which counts as an error of its own: at most step²/4 of each, the
    variance of the number of points that a range of fixed width covers.

    Args:
        widths: In octaves, by batch size and seed (..., B, S).
        log_m: log₂ of the batch sizes (B,).
        step: Of the grid, in octaves.
        k: The number of parts of the claim.
    """
    centred = log_m - log_m.mean()
    slopes = -np.einsum("b,...bs->...s", centred, widths) / (centred**2).sum()
    n = slopes.shape[-1]
    mean = slopes.mean(axis=-1)
    if n == 1:
        return Comparison(mean, np.full_like(mean, -np.inf), np.full_like(mean, np.inf))
    rounding = step**2 / (4 * (centred**2).sum())
    error = np.sqrt(slopes.var(axis=-1, ddof=1) / n + rounding)
    return Comparison(
        effect=mean,
        low=mean - stdtrit(n - 1, 1 - ALPHA) * error,
        high=mean + stdtrit(n - 1, 1 - ALPHA / k) * error,
        spread=error * np.sqrt(n),
    )


def near(rows: Sequence[tuple[Floats, Floats]], distance: float, of: Noise) -> Comparison:
    """Whether the best columns of several rows lie close together.

    In each row a column is dropped that the others' cross-fitted best exceeds. All that are left
    must be near for support; two rows whose columns left are far apart contradict it.

    Args:
        rows: Positions (C,) of the columns of each row, and their accuracies (..., C, S).
        distance: How far apart is near.
        of: The noise, pooled over the rows.
    """
    least, most, best = [], [], []
    for places, cells in rows:
        left = np.ones(cells.shape[:-1], dtype=bool)
        for index in range(len(places) if len(places) > 1 else 0):
            others = cross_fitted(np.delete(cells, index, axis=-2))
            left[..., index] = lower(others - cells[..., index, :], of, 2, len(rows) / 2) <= 0
        # Where everything was dropped nothing is known.
        left |= ~left.any(axis=-1, keepdims=True)
        least.append(np.where(left, places, np.inf).min(axis=-1))
        most.append(np.where(left, places, -np.inf).max(axis=-1))
        best.append(places[cells.mean(axis=-1).argmax(axis=-1)])
    lowest, highest, found = np.stack(least), np.stack(most), np.stack(best)
    return Comparison(
        effect=distance - np.ptp(found, axis=0),
        low=distance - (highest.max(axis=0) - lowest.min(axis=0)),
        high=distance - np.maximum(lowest.max(axis=0) - highest.min(axis=0), 0),
    )


def _between(low: Floats, high: Floats, both: Floats, k: int, above: int, below: int) -> Comparison:
    """Bounds from the difference in either direction, and the effect from one without either.

    Args:
        low: Differences whose winning side is cross-fitted.
        high: Differences whose losing side is.
        both: Differences of what is best in hindsight.
        k: The number of parts of the claim.
        above: Among how many cells the winning side was chosen.
        below: Among how many the losing one.
    """
    return Comparison(
        effect=both.mean(axis=-1),
        low=lower(low, chosen=above),
        high=-lower(-high, k=k, chosen=below),
        spread=_one(low),
        chosen=above,
        loss=(both - low).mean(axis=-1),
    )


def _loss(cells: Floats) -> Floats:
    return (hindsight(cells) - cross_fitted(cells)).mean(axis=-1)


def _merged(values: Floats) -> Floats:
    """Cells (..., B·C, S) of values (..., B, C, S)."""
    return values.reshape(*values.shape[:-3], -1, values.shape[-1])


def _most(terms: Sequence[tuple[float, Floats]]) -> int:
    return max(cells.shape[-2] for _, cells in terms)


def _one(d: Floats, of: Noise | None = None, factor: float = 0.0) -> Floats:
    return spread(d, of, factor) if d.shape[-1] > 1 else np.full(d.shape[:-1], np.nan)


def _sum(terms: Sequence[tuple[float, Floats]], choose: Callable[[Floats], Floats]) -> Floats:
    return np.sum([weight * choose(cells) for weight, cells in terms], axis=0)
