"""Claims about the learning rates at which training works (paper, Figs. 7-9, 16 and the text)."""

from __future__ import annotations

from functools import partial

import numpy as np

from smallbatch.analysis.cells import MAIN_FRACTION
from smallbatch.analysis.claim import (
    Claim,
    Part,
    each_study,
    edge_doubt,
    joined,
    listed_sizes,
    missing_inside,
)
from smallbatch.analysis.evidence import Evidence, UndecidableError
from smallbatch.analysis.seeds import Floats, Picks, SeedArray, all_once

LOWEST = 2.0**-12  # lowest η̃ of the paper's grid
FAILS_BELOW = 0.25  # fraction of the way from chance to the study's best cell
RANGE_FIGURES = ("1", "2", "3", "text", "5", "6", "7", "8", "9", "10", "11", "17", "18")


def _learns_only_up_to_8(evidence: Evidence) -> list[Part]:
    array = evidence.array("text")
    small, large = array.batch_sizes <= 8, array.batch_sizes >= 16
    if not small.any() or not large.any():
        raise UndecidableError("needs batch sizes up to 8 and from 16 on")
    _refuse_gaps(array)

    def learns(picks: Picks) -> Floats:
        return array.reach(array.best(picks))[small].min(axis=0) - MAIN_FRACTION

    def fails(picks: Picks) -> Floats:
        return FAILS_BELOW - array.reach(array.best(picks))[large].max(axis=0)

    n, m = len(array.seeds), array.batch_sizes.tolist()
    missing = missing_inside(2, 16, m, f"{array.name} at m =")
    lowest = array.columns[0]
    finer = "" if lowest <= LOWEST else f"no η̃ below {lowest:g} was tried, as the paper did"
    return [
        Part(
            f"m = {listed_sizes(array.batch_sizes[small])} learn",
            n,
            learns,
            in_doubt_above=missing,
            in_doubt_below=edge_doubt((array, array.worst(small))),
        ),
        Part(
            f"m = {listed_sizes(array.batch_sizes[large])} fail",
            n,
            fails,
            in_doubt_above=joined(missing, finer),
        ),
    ]


def _optimum_unusable_beyond(limit: int, figure: str, evidence: Evidence) -> list[Part]:
    array = evidence.array(figure)
    beyond = array.batch_sizes > limit
    if not beyond.any() or beyond.all():
        raise UndecidableError(f"needs batch sizes up to {limit} and beyond")
    _refuse_gaps(array)

    def effect(picks: Picks) -> Floats:
        medians = array.medians(picks)
        # The η̃ of the best cell over all m; if several are equal, the smallest.
        optimum = np.fmax.reduce(medians, axis=0).argmax(axis=0)
        reach = array.reach(medians)[:, optimum, np.arange(len(picks))]
        return MAIN_FRACTION - reach[beyond].max(axis=0)

    name = f"{array.name} at m = {listed_sizes(array.batch_sizes[beyond])}"
    doubt = edge_doubt((array, array.leader()))
    missing = missing_inside(2, 2 * limit, array.batch_sizes.tolist(), f"{array.name} at m =")
    return [Part(name, len(array.seeds), effect, "", joined(doubt, missing), doubt)]


def _refuse_gaps(array: SeedArray) -> None:
    """An η̃ that was not run at some batch size would count as one that failed there."""
    missing = np.isnan(array.values).any(axis=(1, 2))
    if missing.any():
        sizes = listed_sizes(array.batch_sizes[missing])
        raise UndecidableError(f"{array.name}: not every η̃ was run at m = {sizes}")


def _range_shrinks(evidence: Evidence) -> list[Part]:
    return each_study(evidence, RANGE_FIGURES, _shrinking)


def _shrinking(array: SeedArray) -> Part:
    if len(array.batch_sizes) < 3 or len(array.columns) < 3:
        raise UndecidableError(f"{array.name}: fewer than three batch sizes or three η̃")
    _refuse_gaps(array)
    log_m = np.log2(array.batch_sizes)
    centred = (log_m - log_m.mean()) / ((log_m - log_m.mean()) ** 2).sum()
    step = float(np.median(np.diff(np.log2(array.columns))))

    def effect(picks: Picks) -> Floats:
        widths = step * array.reliable(picks).sum(axis=1)
        return -(centred @ widths)

    reliable = array.reliable(all_once(len(array.seeds)))[..., 0]
    some = np.flatnonzero(reliable.any(axis=1))
    cut = [bool(reliable[row, 0] or reliable[row, -1]) for row in some]
    text = "the range at m = {} reaches the edge of the grid: it may be wider"
    largest, smallest = ("", "")
    if len(some):
        largest = text.format(array.batch_sizes[some[-1]]) if cut[-1] else ""
        smallest = text.format(array.batch_sizes[some[0]]) if cut[0] else ""
    return Part(
        array.name,
        len(array.seeds),
        effect,
        limit=smallest,
        in_doubt_above=largest,
        in_doubt_below=smallest,
    )


def _optimum(figure: str, limit: int) -> Claim:
    return Claim(
        name=f"optimum-base-lr-unusable-fig-{figure}",
        figure=figure,
        statement=f"The optimum η̃ is usable only for m ≤ {limit}",
        criterion=f"With the η̃ of the best cell of any m, at every m > {limit} run the median "
        f"accuracy is less than {MAIN_FRACTION:g} of the way from chance to the best cell; the "
        f"effect is {MAIN_FRACTION:g} minus the highest of these. A median that falls on a "
        "diverged run counts as chance. Undecided if the best cell is on the edge of the grid; "
        f"for support, if one of 2 … {2 * limit} was not run.",
        unit="fraction of the way",
        studies=(figure,),
        parts=partial(_optimum_unusable_beyond, limit, figure),
    )


CLAIMS = (
    Claim(
        name="resnet32-no-norm-learns-to-8",
        figure="text",
        statement="ResNet-32 without BN learns only at m = 2, 4, 8; every η̃ fails for m ≥ 16",
        criterion=f"At every m ≤ 8 run the best accuracy is at least {MAIN_FRACTION:g} of the way "
        f"from chance to the study's best cell, and at every m ≥ 16 less than {FAILS_BELOW:g}. A "
        "batch size at which no run finishes counts as chance. Undecided, for support, if one of 2 "
        "… 16 was not run, or no η̃ as low as the paper's lowest; for contradiction, if what does "
        "not learn has its best η̃ on the edge of the grid.",
        unit="fraction of the way",
        studies=("text",),
        parts=_learns_only_up_to_8,
    ),
    _optimum("7", 16),
    _optimum("8", 16),
    _optimum("9", 8),
    Claim(
        name="range-shrinks",
        figure="16",
        statement="The range of η̃ with reliable convergence shrinks as m grows",
        criterion="In every study run, the number of reliable η̃ (every seed at least "
        f"{MAIN_FRACTION:g} of the way from chance to the best cell) times the grid's step falls "
        "with log₂ m: least squares over all m run. The effect is the fall per doubling of m. "
        "Undecided if a range that decides it reaches the edge of the grid: that of the largest m "
        "with one for support, of the smallest for contradiction.",
        unit="octaves per doubling",
        studies=RANGE_FIGURES,
        parts=_range_shrinks,
        any_study=True,
    ),
)
