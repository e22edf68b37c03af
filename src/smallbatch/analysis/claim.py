"""The form of a claim, and the comparisons that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smallbatch.analysis.evidence import UndecidableError
from smallbatch.analysis.seeds import Floats, Picks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from smallbatch.analysis.evidence import Evidence
    from smallbatch.analysis.seeds import SeedArray

BATCH_SIZES = tuple(2**k for k in range(1, 12))
"""The paper's, 2 … 2048."""


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        name: what is compared.
        n: units that are resampled: seeds, unless the claim says otherwise.
        effect: effects (R,) of picks (R, n); above 0 where the statement holds. None where the
            criterion cannot be applied, for the reason that ``limit`` gives.
        limit: what limits the reading; empty if nothing does.
        in_doubt_above: why effects above 0 would decide nothing; empty if they do.
        in_doubt_below: why effects below 0 would decide nothing; empty if they do.
    """

    name: str
    n: int
    effect: Callable[[Picks], Floats] | None
    limit: str = ""
    in_doubt_above: str = ""
    in_doubt_below: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        name: short, stable identifier.
        figure: where the paper says it.
        statement: what it says.
        criterion: when it counts as true, written out.
        unit: of the effects.
        studies: figures whose studies it is about.
        parts: the comparisons on one data set; raises `UndecidableError` where there are none.
        any_study: whether one of ``studies`` is enough, or all are needed.
        measurement: attribute of `Evidence` that must hold rows besides; empty if none.
    """

    name: str
    figure: str
    statement: str
    criterion: str
    unit: str
    studies: tuple[str, ...]
    parts: Callable[[Evidence], list[Part]]
    any_study: bool = False
    measurement: str = ""

    def has_its_studies(self, evidence: Evidence) -> bool:
        """Whether a data set has what the claim is about."""
        found = [figure in evidence.studies for figure in self.studies]
        if self.measurement and getattr(evidence, self.measurement).empty:
            return False
        return any(found) if self.any_study else all(found)

    @property
    def needed_text(self) -> str:
        """The needed studies in words."""
        names = ["the text's" if name == "text" else f"Fig. {name}'s" for name in self.studies]
        joined = names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
        if self.any_study and len(names) > 1:
            joined = f"any of {joined}"
        return f"{joined} stud{'y' if len(names) == 1 else 'ies'}"


def each_study(
    evidence: Evidence, figures: tuple[str, ...], compare: Callable[[SeedArray], Part]
) -> list[Part]:
    """One comparison for each of the figures whose study was run."""
    return [
        _or_undecided(evidence, figure, compare) for figure in figures if figure in evidence.studies
    ]


def _or_undecided(evidence: Evidence, figure: str, compare: Callable[[SeedArray], Part]) -> Part:
    try:
        return compare(evidence.array(figure))
    except UndecidableError as error:
        return Part(evidence.studies[figure], 0, None, limit=str(error))


def edge_doubt(*sides: tuple[SeedArray, npt.NDArray[np.bool_]]) -> str:
    """In words, which m of some studies, (B,) each, have their best η̃ on the edge of the grid.

    What loses there might win with an η̃ that was not tried.
    """
    found = [
        f"the best η̃ of {array.name} at m = {listed_sizes(array.batch_sizes[there])} is on the "
        "edge of the grid: it may do better outside"
        for array, side in sides
        if (there := side & array.at_the_edge()).any()
    ]
    return joined(*found)


def joined(*doubts: str) -> str:
    """Doubts in one line; empty if there are none."""
    return "; ".join(filter(None, doubts))


def missing_inside(low: int, high: int, ran: Collection[float], what: str) -> str:
    """In words, which of the paper's batch sizes in low … high were not run: one may be best."""
    missing = [size for size in BATCH_SIZES if low <= size <= high and size not in ran]
    return f"{what} {', '.join(map(str, missing))} not run" if missing else ""


def missing_beside(low: int, high: int, ran: Collection[float], what: str) -> str:
    """In words, which of the paper's two batch sizes next to low … high were not run."""
    below = [size for size in BATCH_SIZES if size < low][-1:]
    above = [size for size in BATCH_SIZES if size > high][:1]
    missing = [size for size in (*below, *above) if size not in ran]
    return f"{what} {', '.join(map(str, missing))} not run" if missing else ""


def listed_sizes(batch_sizes: npt.NDArray[np.int64]) -> str:
    """Batch sizes in words."""
    return ", ".join(map(str, batch_sizes.tolist()))
