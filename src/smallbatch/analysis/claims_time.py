"""Claims on the course and the length of training (paper, Figs. 4, 17 and 18)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.claim import POINTS, Claim, Part, edge_doubt, listed_sizes, missing_inside
from smallbatch.analysis.claims_accuracy import best_is_in_some, gains_more, rows_of
from smallbatch.analysis.comparisons import MARGIN, mean_above, within
from smallbatch.analysis.convergence import PAPER_BASE_LR, PAPER_FIGURE
from smallbatch.analysis.evidence import Evidence, UndecidableError, common_batch_sizes
from smallbatch.analysis.inference import noise_of_tables

if TYPE_CHECKING:
    from smallbatch.analysis.seeds import Floats, Masks

ALIKE = 0.03  # largest distance of the mean heights of two accuracy curves that are alike
_EDGE = "Undecided if a best η̃ of what loses is on the edge of the grid."
SMALL, LARGE = 16, 64  # m up to SMALL is "small", m from LARGE on is "large"


def _heights(evidence: Evidence) -> tuple[np.ndarray, Floats, Masks]:
    """Test accuracy averaged over the epochs, by m and seed (B, S), and which m are 4 … 64."""
    m, curves = evidence.curves(PAPER_FIGURE, PAPER_BASE_LR)
    alike = (m >= 4) & (m <= 64)
    if alike.sum() < 2:
        raise UndecidableError("fewer than two batch sizes in 4 … 64")
    return m, curves.mean(axis=-1), alike


def _curves_alike(evidence: Evidence) -> list[Part]:
    m, heights, alike = _heights(evidence)
    # As in `SeedArray.noise`: a curve that stays low has less noise than the others.
    means = heights.mean(axis=1)
    chance = 1 / float(evidence.runs["classes"].iloc[0])
    noise = noise_of_tables([heights[means - chance >= (means.max() - chance) / 2]])
    missing = missing_inside(4, 64, m.tolist(), "m =")
    return [
        Part(
            f"m = {m[first]} and {m[second]}",
            heights.shape[1],
            partial(within, heights[[first]], heights[[second]], ALIKE, noise),
            in_doubt_above=missing,
        )
        for first, second in combinations(np.flatnonzero(alike), 2)
    ]


def _curves_worse_beyond(evidence: Evidence) -> list[Part]:
    m, heights, alike = _heights(evidence)
    beyond = np.flatnonzero(m > 64)
    if not len(beyond):
        raise UndecidableError("no batch size beyond 64")
    winners = [heights[[index]] for index in np.flatnonzero(alike)]
    return [
        Part(
            f"m = {listed_sizes(m[alike])} against {m[index]}",
            heights.shape[1],
            partial(mean_above, winners, [heights[[index]]]),
        )
        for index in beyond
    ]


def _longer(evidence: Evidence, which: str) -> list[Part]:
    m, (long, short) = common_batch_sizes(*evidence.arrays("18", "17", about="epochs"))
    small, large = m <= SMALL, m >= LARGE
    if not small.any() or not large.any():
        raise UndecidableError(f"needs batch sizes up to {SMALL} and from {LARGE} on")
    everywhere = np.ones_like(small)
    if which == "gap":
        # Of the m between small and large the statement says nothing.
        judged = small | large
        long = replace(long, batch_sizes=m[judged], values=long.values[judged])
        inside = small[judged]
        doubts = edge_doubt((long, ~inside)), edge_doubt((long, inside))
        return [Part(long.name, long.n, partial(best_is_in_some, long, inside), "", *doubts)]
    if which == "helps":
        compare = partial(mean_above, rows_of(long, everywhere), rows_of(short, everywhere))
        losers = [(short, everywhere)], [(long, everywhere)]
    else:
        compare = partial(gains_more, long, short, large, small)
        losers = [(short, large), (long, small)], [(long, large), (short, small)]
    doubts = tuple(edge_doubt(*sides) for sides in losers)
    return [Part(f"{long.name} against {short.name}", long.n, compare, "", *doubts)]


CLAIMS = (
    Claim(
        name="curves-alike-4-to-64",
        figure="4",
        statement="At η̃ = 2⁻⁸ the curves of 4 ≤ m ≤ 64 are alike",
        criterion="For every pair of these m, test accuracies averaged over the epochs differ by "
        f"less than {100 * ALIKE:g} percentage points; the effect is that minus their distance. "
        "Curves that cross are alike if they enclose as much on either side. A diverged run counts "
        "as chance. "
        "For support all of these must have been run.",
        unit=POINTS,
        studies=("7",),
        parts=_curves_alike,
    ),
    Claim(
        name="curves-worse-beyond-64",
        figure="4",
        statement="At η̃ = 2⁻⁸ the curves of m > 64 are worse",
        criterion="Test accuracy averaged over the epochs is on average over 4 ≤ m ≤ 64 above "
        "that of every m > 64. A diverged run counts as chance.",
        unit=POINTS,
        studies=("7",),
        parts=_curves_worse_beyond,
    ),
    Claim(
        name="longer-training-helps",
        figure="17/18",
        statement="Longer training helps",
        criterion="The best accuracy after the longest training (Fig. 18) minus that after the "
        f"shortest (Fig. 17), averaged over all m run in both, is above 0. {_EDGE}",
        unit=POINTS,
        studies=("17", "18"),
        parts=lambda evidence: _longer(evidence, "helps"),
    ),
    Claim(
        name="longer-training-helps-large-m-most",
        figure="17/18",
        statement="Longer training helps large m most",
        criterion=f"That gain averaged over m ≥ {LARGE} exceeds the one averaged over m ≤ {SMALL}. "
        + _EDGE,
        unit=POINTS,
        studies=("17", "18"),
        parts=lambda evidence: _longer(evidence, "large most"),
    ),
    Claim(
        name="longer-training-does-not-close-the-gap",
        figure="17/18",
        statement="Large m stays below small m however long the training",
        criterion="After the longest training (Fig. 18) no cell at m ≥ "
        f"{LARGE} is better by {100 * MARGIN:g} percentage point than the best at m ≤ {SMALL}; "
        f"strictly: none is as good. {_EDGE}",
        unit=POINTS,
        studies=("17", "18"),
        parts=lambda evidence: _longer(evidence, "gap"),
    ),
)
