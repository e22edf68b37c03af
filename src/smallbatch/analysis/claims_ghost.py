"""Claims that compare BN batch sizes and SGD batch sizes (paper, Fig. 13)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.claim import Claim, Part, listed_sizes, missing_beside, missing_inside
from smallbatch.analysis.evidence import BN_FIGURES, Evidence, UndecidableError
from smallbatch.analysis.seeds import Floats, Picks, all_once

if TYPE_CHECKING:
    import numpy.typing as npt

    from smallbatch.analysis.seeds import SeedArray

BEST_BN = (4, 8)
FROM = 16  # smallest SGD batch that is judged; it has BN batches below and above 4 and 8
NEAR = 2.0  # most octaves between the best BN batches if they are nearly the same


def _medians(array: SeedArray, picks: Picks) -> Floats:
    """As `SeedArray.medians`, but chance for diverged medians, and NaN where nothing was run."""
    medians = array.medians(picks)
    return np.where(np.isneginf(medians), array.chance, medians)


def _ran(array: SeedArray) -> npt.NDArray[np.bool_]:
    """Whether each (SGD batch, BN batch) was run, (B, C)."""
    return np.asarray(~np.isnan(array.values).all(axis=-1))


def _best_bn(figure: str, evidence: Evidence) -> list[Part]:
    array = evidence.array(figure)
    inside = np.isin(array.columns, BEST_BN)
    parts: list[Part] = []
    for row, m in enumerate(array.batch_sizes.tolist()):
        ran, name = _ran(array)[row], f"SGD batch {m} with a BN batch of"
        missing = missing_inside(*BEST_BN, array.columns[ran].tolist(), name)
        if m >= FROM and (inside & ran).any() and (~inside & ran).any():
            parts.append(
                Part(
                    f"SGD batch {m}",
                    len(array.seeds),
                    partial(_gap, array, row, inside & ran, ~inside & ran),
                    limit=missing,
                    in_doubt_above=missing_beside(*BEST_BN, array.columns[ran].tolist(), name),
                    in_doubt_below=missing,
                )
            )
    if not parts:
        raise UndecidableError(
            f"{array.name}: no SGD batch ≥ {FROM} with BN batches of 4 or 8 and others"
        )
    return parts


def _gap(
    array: SeedArray,
    row: int,
    inside: npt.NDArray[np.bool_],
    outside: npt.NDArray[np.bool_],
    picks: Picks,
) -> Floats:
    medians = _medians(array, picks)[row]
    return medians[inside].max(axis=0) - medians[outside].max(axis=0)


def _independent(figure: str, evidence: Evidence) -> list[Part]:
    array = evidence.array(figure)
    rows = np.flatnonzero(array.batch_sizes >= FROM)
    if len(rows) < 2:
        raise UndecidableError(f"{array.name}: fewer than two SGD batches ≥ {FROM}")
    finished = np.isfinite(array.medians(all_once(len(array.seeds)))[rows, :, 0]).any(axis=1)
    if not finished.all():
        sizes = listed_sizes(array.batch_sizes[rows][~finished])
        raise UndecidableError(f"{array.name}: at m = {sizes} no BN batch lets most seeds finish")

    def effect(picks: Picks) -> Floats:
        medians = np.nan_to_num(_medians(array, picks)[rows], nan=-1.0)
        best = np.log2(array.columns)[medians.argmax(axis=1)]
        return NEAR - (best.max(axis=0) - best.min(axis=0))

    name = f"SGD batches {listed_sizes(array.batch_sizes[rows])}"
    missing = missing_inside(2, FROM, array.columns.tolist(), "a BN batch of")
    return [Part(name, len(array.seeds), effect, "", missing)]


def _smaller_sgd_better(figure: str, evidence: Evidence) -> list[Part]:
    array = evidence.array(figure)
    ran = _ran(array)
    ends = [
        (found[0], found[-1], column)
        for column in range(len(array.columns))
        if len(found := np.flatnonzero(ran[:, column])) > 1
    ]
    if not ends:
        raise UndecidableError(f"{array.name}: no BN batch was run at two SGD batches")
    first, last, columns = (np.array(each) for each in zip(*ends, strict=True))

    def effect(picks: Picks) -> Floats:
        medians = _medians(array, picks)
        return (medians[first, columns] - medians[last, columns]).mean(axis=0)

    return [Part(array.name, len(array.seeds), effect)]


def _claims(figure: str) -> tuple[Claim, ...]:
    return (
        Claim(
            name=f"bn-batch-4-or-8-best-fig-{figure}",
            figure=figure,
            statement="A BN batch of 4 or 8 is best for every SGD batch",
            criterion=f"At every SGD batch ≥ {FROM} the best accuracy with a BN batch of 4 or 8 "
            "exceeds that with any other BN batch run. A median that falls on a diverged run "
            "counts as chance. Undecided, for support, if 2 or 16 was not run; for contradiction, "
            "if 4 or 8 was not.",
            unit="accuracy",
            studies=(figure,),
            parts=partial(_best_bn, figure),
        ),
        Claim(
            name=f"bn-batch-independent-fig-{figure}",
            figure=figure,
            statement="The best BN batch is nearly independent of the SGD batch",
            criterion=f"The best BN batches of the SGD batches ≥ {FROM} lie less than {NEAR:g} "
            f"octaves apart; the effect is {NEAR:g} minus their distance. For support BN "
            f"batches of 2 … {FROM} must have been run.",
            unit="octaves",
            studies=(figure,),
            parts=partial(_independent, figure),
        ),
        Claim(
            name=f"smaller-sgd-batch-better-fig-{figure}",
            figure=figure,
            statement="A smaller SGD batch is better",
            criterion="At a fixed BN batch, accuracy at the smallest SGD batch minus that at the "
            "largest, averaged over the BN batches run at two or more, is above 0.",
            unit="accuracy",
            studies=(figure,),
            parts=partial(_smaller_sgd_better, figure),
        ),
    )


CLAIMS = tuple(claim for figure in BN_FIGURES for claim in _claims(figure))
