"""Claims that compare BN batch sizes and SGD batch sizes (paper, Figs. 13 and 14)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.claim import (
    POINTS,
    Claim,
    Part,
    listed_sizes,
    missing_beside,
    missing_inside,
)
from smallbatch.analysis.comparisons import MARGIN, Comparison, best_is_in, mean_above, near
from smallbatch.analysis.evidence import Evidence, UndecidableError
from smallbatch.analysis.inference import Noise, noise_of_tables

if TYPE_CHECKING:
    from smallbatch.analysis.seeds import SeedArray

BEST_BN = (4, 8)
FROM = 16  # smallest SGD batch that is judged; it has BN batches below and above 4 and 8
BEST_BN_IMAGENET = (16, 32, 64)
FROM_IMAGENET = 128  # likewise
NEAR = 1.5  # most octaves between the best BN batches if they are nearly the same


def _noise(array: SeedArray) -> Noise:
    """Of one run, from the BN batches of each SGD batch: nothing is chosen among these."""
    learning = array.usable & (array.scored.mean(axis=-1) >= array.threshold())
    rows = (array.values[row][learning[row]] for row in range(len(array.batch_sizes)))
    return noise_of_tables(list(rows))


def _best_bn(figure: str, best: tuple[int, ...], smallest: int, evidence: Evidence) -> list[Part]:
    array, noise = evidence.array(figure), _noise(evidence.array(figure))
    inside, ends = np.isin(array.columns, best), (best[0], best[-1])
    parts: list[Part] = []

    def compare(row: int, k: int) -> Comparison:
        ran, cells = array.ran[row], array.scored[row]
        rivals = int((~inside & ran).sum())
        return best_is_in(cells[inside & ran], cells[~inside & ran], noise, k, rivals=rivals)

    for row, m in enumerate(array.batch_sizes.tolist()):
        ran, name = array.ran[row], f"SGD batch {m} with a BN batch of"
        missing = missing_inside(*ends, array.columns[ran].tolist(), name)
        if m >= smallest and (inside & ran).any() and (~inside & ran).any():
            parts.append(
                Part(
                    f"SGD batch {m}",
                    array.n,
                    partial(compare, row),
                    limit=missing,
                    in_doubt_above=missing_beside(*ends, array.columns[ran].tolist(), name),
                    in_doubt_below=missing,
                )
            )
    if not parts:
        raise UndecidableError(
            f"{array.name}: no SGD batch ≥ {smallest} with BN batches of {_or(best)} and others"
        )
    return parts


def _independent(figure: str, evidence: Evidence) -> list[Part]:
    array = evidence.array(figure)
    rows = np.flatnonzero(array.batch_sizes >= FROM)
    if len(rows) < 2:
        raise UndecidableError(f"{array.name}: fewer than two SGD batches ≥ {FROM}")
    if not (usable := array.usable[rows].any(axis=1)).all():
        sizes = listed_sizes(array.batch_sizes[rows][~usable])
        raise UndecidableError(f"{array.name}: at m = {sizes} no BN batch lets all seeds finish")
    places = [(np.log2(array.columns[array.ran[row]]), array.cells_at(int(row))) for row in rows]
    noise = _noise(array)
    name = f"SGD batches {listed_sizes(array.batch_sizes[rows])}"
    missing = missing_inside(2, FROM, array.columns.tolist(), "a BN batch of")
    return [Part(name, array.n, lambda _: near(places, NEAR, noise), "", missing)]


def _smaller_sgd_better(figure: str, evidence: Evidence) -> list[Part]:
    array = evidence.array(figure)
    ends = [
        (found[0], found[-1], column)
        for column in range(len(array.columns))
        if len(found := np.flatnonzero(array.ran[:, column])) > 1
    ]
    if not ends:
        raise UndecidableError(f"{array.name}: no BN batch was run at two SGD batches")
    smallest = [array.scored[first, column][np.newaxis] for first, _, column in ends]
    largest = [array.scored[last, column][np.newaxis] for _, last, column in ends]
    return [Part(array.name, array.n, partial(mean_above, smallest, largest))]


def _or(sizes: tuple[int, ...], last: str = "or") -> str:
    return f"{', '.join(map(str, sizes[:-1]))} {last} {sizes[-1]}"


def _best_claim(name: str, figure: str, words: str, best: tuple[int, ...], smallest: int) -> Claim:
    return Claim(
        name=f"{name}-fig-{figure}",
        figure=figure,
        statement=f"A BN batch of {words} is best for every SGD batch",
        criterion=f"At every SGD batch ≥ {smallest} no other BN batch run is better by "
        f"{100 * MARGIN:g} percentage point than the best of {_or(best, 'and')}; strictly: none is "
        "as good. A cell of which a seed diverged counts as chance. Undecided, for support, if "
        f"{best[0] // 2} or {2 * best[-1]} was not run; for contradiction, if {_or(best)} was not.",
        unit=POINTS,
        studies=(figure,),
        parts=partial(_best_bn, figure, best, smallest),
    )


def _independent_claim(figure: str) -> Claim:
    return Claim(
        name=f"bn-batch-independent-fig-{figure}",
        figure=figure,
        statement="The best BN batch is nearly independent of the SGD batch",
        criterion=f"The best BN batches of the SGD batches ≥ {FROM} lie at most {NEAR:g} "
        "octaves apart (of powers of two: the same or neighbours), whichever of those that "
        f"cannot be told from the best they are; the effect is {NEAR:g} minus the distance of "
        f"the best ones. For support BN batches of 2 … {FROM} must have been run.",
        unit="octaves",
        studies=(figure,),
        parts=partial(_independent, figure),
    )


def _smaller_claim(figure: str) -> Claim:
    return Claim(
        name=f"smaller-sgd-batch-better-fig-{figure}",
        figure=figure,
        statement="A smaller SGD batch is better",
        criterion="At a fixed BN batch, accuracy at the smallest SGD batch minus that at the "
        "largest, averaged over the BN batches run at two or more, is above 0.",
        unit=POINTS,
        studies=(figure,),
        parts=partial(_smaller_sgd_better, figure),
    )


CLAIMS = (
    *(
        claim
        for figure in ("13a", "13b")
        for claim in (
            _best_claim("bn-batch-4-or-8-best", figure, "4 or 8", BEST_BN, FROM),
            _independent_claim(figure),
            _smaller_claim(figure),
        )
    ),
    _best_claim("bn-batch-16-to-64-best", "14", "16 … 64", BEST_BN_IMAGENET, FROM_IMAGENET),
    _smaller_claim("14"),
)
