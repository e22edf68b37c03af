"""Comparisons of what single learning rates do at several batch sizes (paper, Fig. 12).

As in `comparisons`; accuracies (..., C, S) of one batch size are in the order of learning rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.comparisons import (
    MARGIN,
    Comparison,
    of_the_way,
    short_of_the_way,
    weighted,
)
from smallbatch.analysis.inference import Noise, cross_fitted, hindsight, lower

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.analysis.seeds import Floats


def best_at_neighbours(
    inside: Floats, outside: Floats, of: Noise, width: int, k: int = 1, margin: float = MARGIN
) -> Comparison:
    """Whether at neighbouring columns no cell outside is better than the best inside there.

    Any ``width`` neighbours will do, so each place on the grid supports at the level / their count.
    At one place all columns must hold for support, and any one fails it; all places must fail for
    contradiction.

    Args:
        inside: Accuracies (..., B, C, S); none is missing.
        outside: Of the cells elsewhere (..., K, S).
        of: The study's noise.
        width: How many neighbours.
        k: The number of parts of the claim.
        margin: By how much a cell outside may be better for support.
    """
    rows, columns, _ = inside.shape[-3:]
    places = columns - width + 1
    low, high, effect = [], [], []
    for column in range(columns):
        cells = inside[..., column, :]
        ahead = cross_fitted(cells)[..., np.newaxis, :] - outside
        behind = cross_fitted(outside)[..., np.newaxis, :] - cells
        low.append(lower(ahead, of, 2, places, rows).min(axis=-1))
        # At half of its share of the level: the noise of one or two m may be far above the study's.
        high.append(-lower(behind, of, 2, 2 * k * width, outside.shape[-2]).min(axis=-1))
        effect.append((hindsight(cells) - hindsight(outside)).mean(axis=-1))

    def best_place(values: list[Floats]) -> Floats:
        worst = [np.min(values[first : first + width], axis=0) for first in range(places)]
        return np.asarray(np.max(worst, axis=0))

    return Comparison(best_place(effect), best_place(low), best_place(high), margin)


def more_sensitive(
    one: Floats, others: Sequence[Floats], width: int, by: float, k: int = 1
) -> Comparison:
    """Whether a batch size loses more than others on average where its best column is missed.

    What is lost is the accuracy of the best column less the mean over the best ``width``
    neighbours. The drop beside the best column itself would depend on which of several that are
    equally good is taken for it.

    Args:
        one: Accuracies (..., C, S) of the batch size; none is missing.
        others: Those of the others.
        width: How many neighbours.
        by: By how much more.
        k: The number of parts of the claim.
    """
    share = 1 / len(others)
    return weighted(
        [(1.0, one), *((share, neighbours(cells, width)) for cells in others)],
        [
            (1.0, neighbours(one, width)),
            *((share, cells) for cells in others),
            (by, np.ones_like(one[..., :1, :])),
        ],
        k,
    )


def neighbours(cells: Floats, width: int) -> Floats:
    """The means (..., C - width + 1, S) over neighbouring columns of accuracies (..., C, S)."""
    view = np.lib.stride_tricks.sliding_window_view(cells, width, axis=-2)
    means: Floats = view.mean(axis=-1)
    return means


def works_wherever(
    one: Floats, others: Floats, everything: Floats, fraction: float, chance: float, k: int = 1
) -> Comparison:
    """Whether a row gets a fraction of the way at every column at which any other row does.

    At a column the statement holds if this row gets there or all others fall short. So for
    contradiction both must be known to fail.

    Args:
        one: Accuracies (..., C, S) of the row; none is missing.
        others: Those of the other rows (..., B, C, S).
        everything: Of all cells (..., K, S), of which the best is the way's end.
        fraction: Of the way from chance to it.
        chance: The accuracy of guessing.
        k: The number of parts of the claim.
    """
    columns = one.shape[-2]
    sides: list[tuple[Comparison, Comparison]] = []
    for column in range(columns):
        way = (everything, fraction, chance, k * columns)
        gets_there = of_the_way(one[..., column : column + 1, :], *way)
        sides.append((gets_there, short_of_the_way(others[..., column, :], *way)))
    bounds = (
        np.min([np.maximum(getattr(a, name), getattr(b, name)) for a, b in sides], axis=0)
        for name in ("effect", "low", "high")
    )
    return Comparison(*bounds)
