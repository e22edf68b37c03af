"""Claims about the learning rates at which ResNet-50 does best on ImageNet (paper, Fig. 12)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.cells import MAIN_FRACTION
from smallbatch.analysis.claim import (
    POINTS,
    Claim,
    Part,
    edge_doubt,
    joined,
    missing_beside,
    missing_inside,
)
from smallbatch.analysis.claims_accuracy import QUITE_GOOD, SAME_LEVEL, best_batch_size, rows_of
from smallbatch.analysis.claims_stability import optimum_claim, refuse_gaps
from smallbatch.analysis.comparisons import MARGIN
from smallbatch.analysis.comparisons_rates import (
    best_at_neighbours,
    more_sensitive,
    works_wherever,
)
from smallbatch.analysis.evidence import Evidence, UndecidableError

if TYPE_CHECKING:
    from smallbatch.analysis.comparisons import Comparison
    from smallbatch.analysis.seeds import Floats, SeedArray

FIGURE = "12"
ROBUST = (16, 32)  # best over a range of η̃
SENSITIVE = 64
SMALL = 8  # the largest m that is said to converge over the full range
RANGE = 2  # neighbouring η̃, the fewest that make a range
BESIDE = 3  # neighbouring η̃: the best and those a step to either side


def _whole(evidence: Evidence, neighbouring: int) -> SeedArray:
    """The figure's study, with every η̃ at every batch size."""
    array = evidence.array(FIGURE)
    refuse_gaps(array)
    if len(array.columns) < neighbouring:
        raise UndecidableError(f"{array.name}: fewer than {neighbouring} η̃")
    return array


def _best_over_a_range(evidence: Evidence) -> list[Part]:
    array = _whole(evidence, RANGE)
    inside = np.isin(array.batch_sizes, ROBUST)
    if not inside.any() or inside.all():
        raise UndecidableError("needs m = 16 or 32, and others")
    sizes, name = array.batch_sizes.tolist(), f"{array.name} at m ="
    missing = missing_inside(*ROBUST, sizes, name)
    cells = array.scored[inside], array.cells(~inside)

    def compare(k: int) -> Comparison:
        return best_at_neighbours(*cells, array.noise(), RANGE, k)

    return [
        Part(
            array.name,
            array.n,
            compare,
            limit=missing,
            in_doubt_above=joined(
                edge_doubt((array, array.leader(~inside))),
                missing_beside(*ROBUST, sizes, name),
            ),
            in_doubt_below=joined(edge_doubt((array, array.leader(inside))), missing),
        )
    ]


def _sensitive(evidence: Evidence) -> list[Part]:
    array = _whole(evidence, BESIDE)
    one, others = array.batch_sizes == SENSITIVE, np.isin(array.batch_sizes, ROBUST)
    if not one.any() or not others.any():
        raise UndecidableError(f"needs m = {SENSITIVE}, and 16 or 32")
    doubt = edge_doubt((array, one | others))
    missing = missing_inside(*ROBUST, array.batch_sizes.tolist(), f"{array.name} at m =")
    (cells,), rivals = rows_of(array, one), rows_of(array, others)

    def compare(k: int) -> Comparison:
        return more_sensitive(cells, rivals, BESIDE, SAME_LEVEL, k)

    # It is about the average of both rivals, so that without one of them it is open either way.
    doubt = joined(doubt, missing)
    return [Part(array.name, array.n, compare, missing, doubt, doubt)]


def _small_m_work_wherever_others_do(evidence: Evidence) -> list[Part]:
    array = _whole(evidence, 1)
    small = array.batch_sizes <= SMALL
    if not small.any() or small.all():
        raise UndecidableError(f"needs batch sizes up to {SMALL} and beyond")
    larger, everything = array.scored[~small], array.cells(small | ~small)
    name = f"{array.name} at m ="
    missing = missing_inside(2, 2 * SMALL, array.batch_sizes.tolist(), name)

    def compare(cells: Floats, k: int) -> Comparison:
        return works_wherever(cells, larger, everything, MAIN_FRACTION, array.chance, k)

    return [
        Part(
            f"{name} {array.batch_sizes[index]}",
            array.n,
            partial(compare, array.cells_at(int(index))),
            in_doubt_above=missing,
        )
        for index in np.flatnonzero(small)
    ]


_FLOOR = "A cell of which a seed diverged counts as chance."

CLAIMS = (
    best_batch_size(FIGURE, 16, 64, "m = 16 … 64"),
    Claim(
        name="best-over-a-range-of-base-lrs-fig-12",
        figure=FIGURE,
        statement="m = 16 and 32 are best over a continuous range of η̃",
        criterion=f"At some {RANGE} neighbouring η̃ of the grid, or more, no cell at another m, at "
        f"whatever η̃, is better by {100 * MARGIN:g} percentage point than the better of m = 16 and "
        f"32; strictly: none is as good. {_FLOOR} Undecided if an η̃ was not run at some m; for "
        "support, if the best η̃ of the best other m is on the edge of the grid, or 8 or 64 was not "
        "run; for contradiction, if that of the better of 16 and 32 is, or one of these was not.",
        unit=POINTS,
        studies=(FIGURE,),
        parts=_best_over_a_range,
    ),
    Claim(
        name="m-64-sensitive-to-base-lr-fig-12",
        figure=FIGURE,
        statement="m = 64 is very sensitive to η̃",
        criterion=f"Accuracy averaged over the best {BESIDE} neighbouring η̃ of the grid is below "
        f"that at the best η̃; at m = {SENSITIVE} by {100 * SAME_LEVEL:g} percentage points more "
        f"than at m = 16 and 32 on average. The effect is by how much it exceeds that. {_FLOOR} "
        "Undecided if a best η̃ of these m is on the edge of the grid, or an η̃ was not run at some "
        "m.",
        unit=POINTS,
        studies=(FIGURE,),
        parts=_sensitive,
    ),
    optimum_claim(
        FIGURE,
        64,
        QUITE_GOOD,
        name="large-m-degrade-at-the-best-base-lr-fig-12",
        statement="m > 64 degrade where the best η̃ lie",
    ),
    Claim(
        name="small-m-converge-over-the-full-range-fig-12",
        figure=FIGURE,
        statement="Smaller m converge over the full range of η̃",
        criterion=f"At every η̃ at which any m > {SMALL} run gets at least {MAIN_FRACTION:g} of the "
        f"way from chance to the study's best cell, so does every m ≤ {SMALL} run; the effect is "
        "by how much that holds at the worst η̃: by what the small m exceeds the threshold or all "
        f"larger fall short of it, whichever is more. {_FLOOR} Undecided if an η̃ was not run at "
        f"some m; for support, if one of 2 … {2 * SMALL} was not run.",
        unit=POINTS,
        studies=(FIGURE,),
        parts=_small_m_work_wherever_others_do,
    ),
)
