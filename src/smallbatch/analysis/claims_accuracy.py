"""Claims on the best accuracy at each batch size (paper, Figs. 1-3, 5-11 and 15)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.claim import (
    POINTS,
    Claim,
    Part,
    each_study,
    edge_doubt,
    joined,
    listed_sizes,
    missing_beside,
    missing_inside,
)
from smallbatch.analysis.comparisons import (
    MARGIN,
    best_is_in,
    mean_above,
    of_the_way,
    weighted,
    within,
)
from smallbatch.analysis.evidence import Evidence, UndecidableError, common_batch_sizes

if TYPE_CHECKING:
    from smallbatch.analysis.comparisons import Comparison
    from smallbatch.analysis.seeds import Floats, Masks, SeedArray

NO_NORM = ("1", "2", "3")
CIFAR10 = ("1", "2", "3", "text", "5", "6", "7", "8", "10")
SAME_LEVEL = 0.02  # largest difference of accuracies that are on "the same level"
QUITE_GOOD = 0.9  # fraction of the way from chance to the study's best cell
_FLOOR = "A cell of which a seed diverged counts as chance."
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
    missing = missing_inside(low, high, m.tolist(), f"{array.name} at m =")
    return Part(
        array.name,
        array.n,
        partial(best_is_in_some, array, inside),
        limit=missing,
        in_doubt_above=joined(
            edge_doubt((array, array.leader(outside))),
            missing_beside(low, high, m.tolist(), f"{array.name} at m ="),
        ),
        in_doubt_below=joined(edge_doubt((array, array.leader(inside))), missing),
    )


def best_is_in_some(array: SeedArray, inside: Masks, k: int) -> Comparison:
    """Whether the best accuracy of a study is at some m, a mask (B,), among k parts of a claim."""
    rivals = int((~inside).sum())
    cells = array.cells(inside), array.cells(~inside)
    return best_is_in(*cells, array.noise(), k, rivals=rivals)


def _improves_down_to_two(evidence: Evidence) -> list[Part]:
    return each_study(evidence, NO_NORM, lambda array: _inside_against_outside(array, 2, 2))


def _best_below_32(evidence: Evidence) -> list[Part]:
    return each_study(evidence, CIFAR10, lambda array: _inside_against_outside(array, 1, 31))


def _two_studies(
    evidence: Evidence, better: str, worse: str, low: int, high: int, about: str
) -> tuple[Masks, SeedArray, SeedArray]:
    m, (first, second) = common_batch_sizes(*evidence.arrays(better, worse, about=about))
    chosen = (m >= low) & (m <= high)
    if not chosen.any():
        raise UndecidableError(f"no batch size in {low} … {high} was run in both studies")
    return chosen, first, second


def rows_of(array: SeedArray, among: Masks) -> list[Floats]:
    """The cells (K, S) of each of some m, given as a mask (B,)."""
    return [array.cells_at(int(index)) for index in np.flatnonzero(among)]


def _better_at_every_m(
    evidence: Evidence, better: str, worse: str, low: int, high: int, *, about: str
) -> list[Part]:
    chosen, first, second = _two_studies(evidence, better, worse, low, high, about)
    missing = missing_inside(low, high, first.batch_sizes.tolist(), "both at m =")
    parts: list[Part] = []
    for index in np.flatnonzero(chosen):
        here = np.arange(len(chosen)) == index
        cells = [first.cells_at(int(index))], [second.cells_at(int(index))]
        parts.append(
            Part(
                f"{first.name} minus {second.name} at m = {first.batch_sizes[index]}",
                first.n,
                partial(mean_above, *cells),
                in_doubt_above=joined(edge_doubt((second, here)), missing),
                in_doubt_below=edge_doubt((first, here)),
            )
        )
    return parts


def _better_on_average(
    evidence: Evidence, better: str, worse: str, low: int, high: int, *, about: str
) -> list[Part]:
    chosen, first, second = _two_studies(evidence, better, worse, low, high, about)
    m = listed_sizes(first.batch_sizes[chosen])
    above, below = (edge_doubt((array, chosen)) for array in (second, first))
    compare = partial(mean_above, rows_of(first, chosen), rows_of(second, chosen))
    name = f"{first.name} minus {second.name} at m = {m}"
    return [Part(name, first.n, compare, "", above, below)]


def _same_level(evidence: Evidence) -> list[Part]:
    # Of what only one of them ran, the other might have been as good.
    _, (first, second) = common_batch_sizes(*evidence.arrays("6", "5", about="norm"))
    everything = np.ones(len(first.batch_sizes), dtype=bool)
    cells = first.cells(everything), second.cells(everything)
    leaders = [(array, array.leader()) for array in (first, second)]
    lower = min(leaders, key=lambda each: each[0].sample().max())
    return [
        Part(
            f"{first.name} and {second.name}",
            first.n,
            lambda k: within(*cells, SAME_LEVEL, k=k),
            in_doubt_above=edge_doubt(*leaders),
            in_doubt_below=edge_doubt(lower),
        )
    ]


def _small_m_eases_depth(evidence: Evidence) -> list[Part]:
    m, (deep, shallow) = common_batch_sizes(*evidence.arrays("3", "2", about="model"))
    small, large = m <= 8, m >= 16
    if not small.any() or not large.any():
        raise UndecidableError("needs batch sizes up to 8 and from 16 on in both studies")
    return [
        Part(
            f"{deep.name} minus {shallow.name}",
            deep.n,
            partial(gains_more, deep, shallow, small, large),
            in_doubt_above=edge_doubt((shallow, small), (deep, large)),
            in_doubt_below=edge_doubt((deep, small), (shallow, large)),
        )
    ]


def gains_more(
    better: SeedArray, worse: SeedArray, here: Masks, there: Masks, k: int
) -> Comparison:
    """Whether one study's mean gain over another is larger at some m than at others."""

    def mean(array: SeedArray, among: Masks) -> list[tuple[float, Floats]]:
        return [(1 / among.sum(), cells) for cells in rows_of(array, among)]

    return weighted(
        [*mean(better, here), *mean(worse, there)], [*mean(worse, here), *mean(better, there)], k
    )


def _good_out_to_128(evidence: Evidence) -> list[Part]:
    array = evidence.array("10")
    chosen = (array.batch_sizes >= 16) & (array.batch_sizes <= 128)
    if not chosen.any():
        raise UndecidableError("no batch size in 16 … 128 was run")
    top = edge_doubt((array, array.leader()))
    missing = missing_inside(16, 128, array.batch_sizes.tolist(), f"{array.name} at m =")
    return parts_of_the_way(array, chosen, QUITE_GOOD, joined(top, missing))


def parts_of_the_way(
    array: SeedArray, among: Masks, fraction: float, in_doubt_above: str
) -> list[Part]:
    """For each of some m: whether its best gets a fraction of the way to the study's best."""
    everything = array.cells(np.ones(len(among), dtype=bool))

    def compare(cells: Floats, k: int) -> Comparison:
        return of_the_way(cells, everything, fraction, array.chance, k)

    return [
        Part(
            f"{array.name} at m = {array.batch_sizes[index]}",
            array.n,
            partial(compare, array.cells_at(int(index))),
            in_doubt_above=in_doubt_above,
            in_doubt_below=edge_doubt((array, np.arange(len(among)) == index)),
        )
        for index in np.flatnonzero(among)
    ]


def best_batch_size(figure: str, low: int, high: int, words: str) -> Claim:
    """The claim that the best m of a figure's study lies in low … high."""
    return Claim(
        name=f"best-batch-size-fig-{figure}",
        figure=figure,
        statement=f"Best {words}",
        criterion=f"No cell at another m run is better by {100 * MARGIN:g} percentage point than "
        f"the best (highest mean over seeds of any η̃) at {low} ≤ m ≤ {high}; strictly: none is as "
        f"good. {_FLOOR} {_OPEN}",
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
            _better_on_average, better=figure, worse=without, low=16, high=2**30, about="warmup"
        ),
    )


CLAIMS = (
    best_batch_size("1", 1, 8, "m ≤ 8"),
    best_batch_size("2", 2, 4, "m = 2 and 4"),
    best_batch_size("3", 2, 4, "m = 2 and 4"),
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
    best_batch_size("5", 8, 64, "m = 8 … 64"),
    Claim(
        name="bn-better-than-none-fig-5",
        figure="5",
        statement="AlexNet with BN is better than without (Fig. 1) over a wide range",
        criterion="The best accuracy with BN exceeds that without at every m in 8 … 64 run in "
        f"both. {_FLOOR} {_EDGE} For support all of these must have been run.",
        unit=POINTS,
        studies=("5", "1"),
        parts=partial(_better_at_every_m, better="5", worse="1", low=8, high=64, about="norm"),
    ),
    best_batch_size("6", 4, 32, "m = 4 … 32"),
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
    best_batch_size("7", 4, 8, "m = 4 or 8"),
    best_batch_size("8", 4, 8, "m = 4 or 8"),
    best_batch_size("9", 4, 8, "m = 4 or 8"),
    best_batch_size("10", 4, 8, "still m = 4 and 8, with warm-up"),
    Claim(
        name="warm-up-good-to-128",
        figure="10",
        statement="With warm-up quite good out to m = 128",
        criterion=f"At every m in 16 … 128 run, the best accuracy is at least {QUITE_GOOD:g} of "
        "the way from chance to the study's best cell; the effect is by how much it exceeds that. "
        f"{_FLOOR} Undecided, for support, if the η̃ of the best cell is on the "
        "edge of the grid or one of 16 … 128 was not run; for contradiction, if the best η̃ of the "
        "m that falls short is on the edge.",
        unit=POINTS,
        studies=("10",),
        parts=_good_out_to_128,
    ),
    best_batch_size("11", 4, 16, "m = 4 … 16, with warm-up"),
    _warm_up("10", "8"),
    _warm_up("11", "9"),
    Claim(
        name="no-norm-improves-to-2",
        figure="15",
        statement="Without BN accuracy keeps improving down to m = 2",
        criterion="In every study without BN (Figs. 1, 2, 3) that was run no cell at another m is "
        f"better by {100 * MARGIN:g} percentage point than the best at m = 2; strictly: none is as "
        f"good. {_FLOOR} {_OPEN}",
        unit=POINTS,
        studies=NO_NORM,
        parts=_improves_down_to_two,
        any_study=True,
    ),
    Claim(
        name="best-always-below-32",
        figure="15",
        statement="The best batch size is always below 32",
        criterion="In every CIFAR-10 study run (Figs. 1-3, 5-8, 10, the text's) no cell at m ≥ 32 "
        f"is better by {100 * MARGIN:g} percentage point than the best at m < 32; strictly: none "
        f"is as good. {_FLOOR} {_OPEN}",
        unit=POINTS,
        studies=CIFAR10,
        parts=_best_below_32,
        any_study=True,
    ),
)
