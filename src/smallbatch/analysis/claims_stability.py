"""Claims about the learning rates at which training works (paper, Figs. 7-9, 16 and the text)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.cells import MAIN_FRACTION
from smallbatch.analysis.claim import (
    POINTS,
    Claim,
    Part,
    each_study,
    edge_doubt,
    joined,
    listed_sizes,
    missing_inside,
)
from smallbatch.analysis.claims_accuracy import parts_of_the_way
from smallbatch.analysis.comparisons import (
    Comparison,
    falls,
    short_at_the_best_column,
    short_of_the_way,
)
from smallbatch.analysis.evidence import Evidence, UndecidableError

if TYPE_CHECKING:
    from smallbatch.analysis.seeds import Floats, SeedArray

LOWEST = 2.0**-12  # lowest η̃ of the paper's grid
FAILS_BELOW = 0.25  # fraction of the way from chance to the study's best cell
RANGE_FIGURES = ("1", "2", "3", "text", "5", "6", "7", "8", "9", "10", "11", "17", "18")


def _learns_only_up_to_8(evidence: Evidence) -> list[Part]:
    array = evidence.array("text")
    small, large = array.batch_sizes <= 8, array.batch_sizes >= 16
    if not small.any() or not large.any():
        raise UndecidableError("needs batch sizes up to 8 and from 16 on")
    refuse_gaps(array)
    missing = missing_inside(2, 16, array.batch_sizes.tolist(), f"{array.name} at m =")
    lowest = array.columns[0]
    finer = "" if lowest <= LOWEST else f"no η̃ below {lowest:g} was tried, as the paper did"
    everything = array.cells(small | ~small)

    def fails(cells: Floats, k: int) -> Comparison:
        return short_of_the_way(cells, everything, FAILS_BELOW, array.chance, k)

    return [
        *parts_of_the_way(array, small, MAIN_FRACTION, missing),
        *(
            Part(
                f"{array.name} at m = {array.batch_sizes[index]} fails",
                array.n,
                partial(fails, array.cells_at(int(index))),
                in_doubt_above=joined(missing, finer),
            )
            for index in np.flatnonzero(large)
        ),
    ]


def _optimum_unusable_beyond(
    limit: int, fraction: float, figure: str, evidence: Evidence
) -> list[Part]:
    array = evidence.array(figure)
    beyond = array.batch_sizes > limit
    if not beyond.any() or beyond.all():
        raise UndecidableError(f"needs batch sizes up to {limit} and beyond")
    refuse_gaps(array)
    doubt = edge_doubt((array, array.leader()))
    missing = missing_inside(2, 2 * limit, array.batch_sizes.tolist(), f"{array.name} at m =")

    noise = array.noise()

    def compare(row: int, k: int) -> Comparison:
        return short_at_the_best_column(array.scored, row, fraction, array.chance, noise, k)

    return [
        Part(
            f"{array.name} at m = {array.batch_sizes[index]}",
            array.n,
            partial(compare, int(index)),
            in_doubt_above=joined(doubt, missing),
            in_doubt_below=doubt,
        )
        for index in np.flatnonzero(beyond)
    ]


def refuse_gaps(array: SeedArray) -> None:
    """Check that every η̃ was run at every m; one that was not would count as one that failed.

    Raises:
        UndecidableError: One was not.
    """
    missing = ~array.ran.all(axis=1)
    if missing.any():
        sizes = listed_sizes(array.batch_sizes[missing])
        raise UndecidableError(f"{array.name}: not every η̃ was run at m = {sizes}")


def _range_shrinks(evidence: Evidence) -> list[Part]:
    return each_study(evidence, RANGE_FIGURES, _shrinking)


def _shrinking(array: SeedArray) -> Part:
    if len(array.batch_sizes) < 3 or len(array.columns) < 3:
        raise UndecidableError(f"{array.name}: fewer than three batch sizes or three η̃")
    refuse_gaps(array)
    step = float(np.median(np.diff(np.log2(array.columns))))
    # A diverged run is -inf, and so below the threshold.
    reaches = array.values >= array.threshold() - 1e-9
    widths = step * reaches.sum(axis=1)
    reliable = np.min(reaches, axis=-1)
    some = np.flatnonzero(np.max(reliable, axis=1))
    cut = [bool(reliable[row, 0] or reliable[row, -1]) for row in some]
    text = "the range at m = {} reaches the edge of the grid: it may be wider"
    largest, smallest = ("", "")
    if len(some):
        largest = text.format(array.batch_sizes[some[-1]]) if cut[-1] else ""
        smallest = text.format(array.batch_sizes[some[0]]) if cut[0] else ""
        # Where nothing is reliable a range may lie outside the grid.
        at = np.arange(len(array.batch_sizes))
        largest = joined(largest, edge_doubt((array, at > some[-1])))
        smallest = joined(smallest, edge_doubt((array, at < some[0])))
    return Part(
        array.name,
        array.n,
        lambda k: falls(widths, np.log2(array.batch_sizes), step, k),
        limit=smallest,
        in_doubt_above=largest,
        in_doubt_below=smallest,
    )


def optimum_claim(
    figure: str, limit: int, fraction: float = MAIN_FRACTION, *, name: str = "", statement: str = ""
) -> Claim:
    """The claim that with the optimum η̃ m > limit gets less than a fraction of the way."""
    return Claim(
        name=name or f"optimum-base-lr-unusable-fig-{figure}",
        figure=figure,
        statement=statement or f"The optimum η̃ is usable only for m ≤ {limit}",
        criterion="With the η̃ of the best cell of any m, and with every η̃ that cannot be told from "
        f"it, at every m > {limit} run the accuracy is less than {fraction:g} of the way from "
        "chance to the best cell; the effect is by how much it falls short. A cell of which a seed "
        "diverged counts as chance. Undecided if the best cell is on the edge of the grid; for "
        f"support, if one of 2 … {2 * limit} was not run.",
        unit=POINTS,
        studies=(figure,),
        parts=partial(_optimum_unusable_beyond, limit, fraction, figure),
    )


CLAIMS = (
    Claim(
        name="resnet32-no-norm-learns-to-8",
        figure="text",
        statement="ResNet-32 without BN learns only at m = 2, 4, 8; every η̃ fails for m ≥ 16",
        criterion=f"At every m ≤ 8 run the best accuracy is at least {MAIN_FRACTION:g} of the way "
        f"from chance to the study's best cell, and at every m ≥ 16 less than {FAILS_BELOW:g}; the "
        "effect is by how much. A cell of which a seed diverged counts as chance. Undecided, for "
        "support, if one of 2 … 16 was not run, or no η̃ as low as the paper's lowest; for "
        "contradiction, if what does not learn has its best η̃ on the edge of the grid.",
        unit=POINTS,
        studies=("text",),
        parts=_learns_only_up_to_8,
    ),
    optimum_claim("7", 16),
    optimum_claim("8", 16),
    optimum_claim("9", 8),
    Claim(
        name="range-shrinks",
        figure="16",
        statement="The range of η̃ with reliable convergence shrinks as m grows",
        criterion="In every study run, the number of η̃ at which a seed gets at least "
        f"{MAIN_FRACTION:g} of the way from chance to the best cell, times the grid's step, falls "
        "with log₂ m: least squares over all m run, seed by seed. The effect is the fall per "
        "doubling of m; the grid's step counts as an error of each range. "
        "Undecided if a range that decides it reaches the edge of the grid: that of the largest m "
        "with one for support, of the smallest for contradiction.",
        unit="octaves per doubling",
        studies=RANGE_FIGURES,
        parts=_range_shrinks,
        any_study=True,
    ),
)
