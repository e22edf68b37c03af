"""Claims on the best accuracy at each batch size (paper, Figs. 1-3, 5-11 and 15)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.claim import (
    Claim,
    Part,
    each_study,
    edge_doubt,
    joined,
    listed_sizes,
    missing_beside,
    missing_inside,
)
from smallbatch.analysis.evidence import Evidence, UndecidableError, common_batch_sizes
from smallbatch.analysis.seeds import Floats, Picks

if TYPE_CHECKING:
    from smallbatch.analysis.seeds import SeedArray

POINTS = "accuracy"
NO_NORM = ("1", "2", "3")
CIFAR10 = ("1", "2", "3", "text", "5", "6", "7", "8", "10")
SAME_LEVEL = 0.02  # largest difference of accuracies that are on "the same level"
QUITE_GOOD = 0.9  # fraction of the way from chance to the study's best cell
_FLOOR = "A batch size at which no run finishes counts as chance."
_EDGE = "Undecided if a best η̃ of what loses is on the edge of the grid."
_OPEN = (
    "Undecided if the best η̃ of the losing side's best m is on the edge of the grid; for support, "
    "if one of the two batch sizes next to these was not run; for contradiction, if one of these "
    "was not."
)


def best_among(low: int, high: int, figure: str, evidence: Evidence) -> list[Part]:
    """Compare the best accuracy at low ≤ m ≤ high with that at every other m."""
    return [_inside_against_outside(evidence.array(figure), low, high)]


def _inside_against_outside(array: SeedArray, low: int, high: int) -> Part:
    """Effect: the best accuracy at low ≤ m ≤ high minus the best at the other m.

    Nothing is decided if the worse side may be worse because a better η̃ or m was not tried.
    """
    m = array.batch_sizes
    inside = (m >= low) & (m <= high)
    outside = ~inside
    if not inside.any() or not outside.any():
        raise UndecidableError(
            f"{array.name}: of m = {listed_sizes(m)}, all that was run, none lies "
            + ("inside" if not inside.any() else "outside")
            + f" {low} … {high}"
        )

    def effect(picks: Picks) -> Floats:
        best = array.best(picks)
        return best[inside].max(axis=0) - best[outside].max(axis=0)

    missing = missing_inside(low, high, m.tolist(), f"{array.name} at m =")
    return Part(
        array.name,
        len(array.seeds),
        effect,
        limit=missing,
        in_doubt_above=joined(
            edge_doubt((array, array.leader(outside))),
            missing_beside(low, high, m.tolist(), f"{array.name} at m ="),
        ),
        in_doubt_below=joined(edge_doubt((array, array.leader(inside))), missing),
    )


def _improves_down_to_two(evidence: Evidence) -> list[Part]:
    return each_study(evidence, NO_NORM, lambda array: _inside_against_outside(array, 2, 2))


def _best_below_32(evidence: Evidence) -> list[Part]:
    return each_study(evidence, CIFAR10, lambda array: _inside_against_outside(array, 1, 31))


def _difference(
    evidence: Evidence, better: str, worse: str, low: int, high: int, *, about: str,
    everywhere: bool,
) -> list[Part]:  # fmt: skip
    """One study's accuracy minus another's over the common m in low … high: minimum or mean."""
    m, (first, second) = common_batch_sizes(*evidence.arrays(better, worse, about=about))
    chosen = (m >= low) & (m <= high)
    if not chosen.any():
        raise UndecidableError(f"no batch size in {low} … {high} was run in both studies")

    def effect(picks: Picks) -> Floats:
        gain = (first.best(picks) - second.best(picks))[chosen]
        return gain.min(axis=0) if everywhere else gain.mean(axis=0)

    name = f"{first.name} minus {second.name} at m = {listed_sizes(m[chosen])}"
    above, below = (edge_doubt((array, chosen)) for array in (second, first))
    if everywhere:
        above = joined(above, missing_inside(low, high, m.tolist(), "both at m ="))
    return [Part(name, len(first.seeds), effect, "", above, below)]


def _same_level(evidence: Evidence) -> list[Part]:
    # Of what only one of them ran, the other might have been as good.
    _, (first, second) = common_batch_sizes(*evidence.arrays("6", "5", about="norm"))

    def effect(picks: Picks) -> Floats:
        gap = first.best(picks).max(axis=0) - second.best(picks).max(axis=0)
        return SAME_LEVEL - np.abs(gap)

    leaders = [(array, array.leader()) for array in (first, second)]
    lower = min(leaders, key=lambda each: each[0].sample().max())
    name = f"{first.name} and {second.name}"
    return [Part(name, len(first.seeds), effect, "", edge_doubt(*leaders), edge_doubt(lower))]


def _small_m_eases_depth(evidence: Evidence) -> list[Part]:
    m, (deep, shallow) = common_batch_sizes(*evidence.arrays("3", "2", about="model"))
    small, large = m <= 8, m >= 16
    if not small.any() or not large.any():
        raise UndecidableError("needs batch sizes up to 8 and from 16 on in both studies")

    def effect(picks: Picks) -> Floats:
        gain = deep.best(picks) - shallow.best(picks)
        return gain[small].mean(axis=0) - gain[large].mean(axis=0)

    return [
        Part(
            f"{deep.name} minus {shallow.name}",
            len(deep.seeds),
            effect,
            in_doubt_above=edge_doubt((shallow, small), (deep, large)),
            in_doubt_below=edge_doubt((deep, small), (shallow, large)),
        )
    ]


def _good_out_to_128(evidence: Evidence) -> list[Part]:
    array = evidence.array("10")
    chosen = (array.batch_sizes >= 16) & (array.batch_sizes <= 128)
    if not chosen.any():
        raise UndecidableError("no batch size in 16 … 128 was run")

    def effect(picks: Picks) -> Floats:
        return array.reach(array.best(picks))[chosen].min(axis=0) - QUITE_GOOD

    name = f"{array.name} at m = {listed_sizes(array.batch_sizes[chosen])}"
    top, worst = (edge_doubt((array, m)) for m in (array.leader(), array.worst(chosen)))
    missing = missing_inside(16, 128, array.batch_sizes.tolist(), f"{array.name} at m =")
    return [Part(name, len(array.seeds), effect, "", joined(top, missing), worst)]


def _best(figure: str, low: int, high: int, words: str) -> Claim:
    return Claim(
        name=f"best-batch-size-fig-{figure}",
        figure=figure,
        statement=f"Best {words}",
        criterion=f"The best accuracy (highest median over seeds of any η̃) at {low} ≤ m ≤ {high} "
        f"exceeds that at every other m run. {_FLOOR} {_OPEN}",
        unit=POINTS,
        studies=(figure,),
        parts=partial(best_among, low, high, figure),
    )


def _warm_up(figure: str, without: str) -> Claim:
    return Claim(
        name=f"warm-up-helps-fig-{figure}",
        figure=figure,
        statement="Warm-up improves large batches",
        criterion=f"The best accuracy with warm-up (Fig. {figure}) minus that without (Fig. "
        f"{without}), averaged over the m ≥ 16 run in both, is above 0. {_FLOOR} {_EDGE}",
        unit=POINTS,
        studies=(figure, without),
        parts=partial(
            _difference,
            better=figure,
            worse=without,
            low=16,
            high=2**30,
            about="warmup",
            everywhere=False,
        ),
    )


CLAIMS = (
    _best("1", 1, 8, "m ≤ 8"),
    _best("2", 2, 4, "m = 2 and 4"),
    _best("3", 2, 4, "m = 2 and 4"),
    Claim(
        name="small-m-eases-depth",
        figure="3",
        statement="A small m eases training the deeper net",
        criterion="The best accuracy of ResNet-20 (Fig. 3) minus that of ResNet-8 (Fig. 2), "
        f"averaged over m ≤ 8, exceeds the same averaged over m ≥ 16. {_FLOOR} {_EDGE}",
        unit=POINTS,
        studies=("3", "2"),
        parts=_small_m_eases_depth,
    ),
    _best("5", 8, 64, "m = 8 … 64"),
    Claim(
        name="bn-better-than-none-fig-5",
        figure="5",
        statement="AlexNet with BN is better than without (Fig. 1) over a wide range",
        criterion="The best accuracy with BN exceeds that without at every m in 8 … 64 run in "
        f"both. {_FLOOR} {_EDGE} For support all of these must have been run.",
        unit=POINTS,
        studies=("5", "1"),
        parts=partial(
            _difference, better="5", worse="1", low=8, high=64, about="norm", everywhere=True
        ),
    ),
    _best("6", 4, 32, "m = 4 … 32"),
    Claim(
        name="bn-after-convs-same-level-fig-6",
        figure="6",
        statement="BN after convolutions only reaches the same level as BN everywhere (Fig. 5)",
        criterion="The best accuracies of any m differ by less than "
        f"{100 * SAME_LEVEL:g} percentage points; the effect is that minus their distance. "
        "Undecided if the best η̃ of the lower one, or for support of either, is on the edge of the "
        "grid.",
        unit=POINTS,
        studies=("6", "5"),
        parts=_same_level,
    ),
    _best("7", 4, 8, "m = 4 or 8"),
    _best("8", 4, 8, "m = 4 or 8"),
    _best("9", 4, 8, "m = 4 or 8"),
    _best("10", 4, 8, "still m = 4 and 8, with warm-up"),
    Claim(
        name="warm-up-good-to-128",
        figure="10",
        statement="With warm-up quite good out to m = 128",
        criterion=f"At every m in 16 … 128 run, the best accuracy is at least {QUITE_GOOD:g} of "
        "the way from chance to the study's best cell; the effect is the least of these minus "
        f"{QUITE_GOOD:g}. {_FLOOR} Undecided, for support, if the η̃ of the best cell is on the "
        "edge of the grid or one of 16 … 128 was not run; for contradiction, if the best η̃ of the "
        "worst of these is on the edge.",
        unit="fraction of the way",
        studies=("10",),
        parts=_good_out_to_128,
    ),
    _best("11", 4, 16, "m = 4 … 16, with warm-up"),
    _warm_up("10", "8"),
    _warm_up("11", "9"),
    Claim(
        name="no-norm-improves-to-2",
        figure="15",
        statement="Without BN accuracy keeps improving down to m = 2",
        criterion="In every study without BN (Figs. 1, 2, 3) that was run the best accuracy at "
        f"m = 2 exceeds that at every other m run. {_FLOOR} {_OPEN}",
        unit=POINTS,
        studies=NO_NORM,
        parts=_improves_down_to_two,
        any_study=True,
    ),
    Claim(
        name="best-always-below-32",
        figure="15",
        statement="The best batch size is always below 32",
        criterion="In every CIFAR-10 study run (Figs. 1-3, 5-8, 10, the text's) the best accuracy "
        f"at m < 32 exceeds that at every m ≥ 32. {_FLOOR} {_OPEN}",
        unit=POINTS,
        studies=CIFAR10,
        parts=_best_below_32,
        any_study=True,
    ),
)
