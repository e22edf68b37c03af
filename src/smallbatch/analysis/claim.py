"""What a claim consists of, and comparisons that several claims use."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smallbatch.analysis.evidence import UndecidableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from smallbatch.analysis.comparisons import Comparison
    from smallbatch.analysis.evidence import Evidence
    from smallbatch.analysis.seeds import Masks, SeedArray

BATCH_SIZES = tuple(2**k for k in range(1, 12))
"""The paper's batch sizes, 2 … 2048."""

POINTS = "accuracy"
"""The unit of effects that are differences of accuracies; shown as percentage points."""


@dataclass(frozen=True)
class Part:
    """One comparison of a claim.

    Attributes:
        name: What is compared.
        n: The number of units that vary: seeds, unless the claim says otherwise.
        compare: Gives the comparison, for the number of parts that the claim has. None if the
            criterion cannot be applied, for the reason given by ``limit``.
        limit: What limits the reading; empty if nothing does.
        in_doubt_above: Why support would decide nothing; empty if it does.
        in_doubt_below: Why contradiction would decide nothing; empty if it does.
    """

    name: str
    n: int
    compare: Callable[[int], Comparison] | None
    limit: str = ""
    in_doubt_above: str = ""
    in_doubt_below: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement of the paper.

    Attributes:
        name: A short identifier that never changes.
        figure: Where in the paper the statement is made.
        statement: The statement.
        criterion: When the statement counts as true, in words.
        unit: The unit of the effects.
        studies: The figures whose studies the claim is about.
        parts: Makes the comparisons on one data set; raises `UndecidableError` if there are none.
        any_study: Whether one of ``studies`` is enough; otherwise all are needed.
        measurement: An attribute of `Evidence` that must also have rows; empty if none.
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

    def has_its_studies(self, evidence: Evidence, *, measured: bool = True) -> bool:
        """Whether a data set has the studies that the claim needs, and what must be measured."""
        found = [figure in evidence.studies for figure in self.studies]
        if measured and self.measurement and getattr(evidence, self.measurement).empty:
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
    """The comparison for each of the figures whose study was run."""
    return [
        _or_undecided(evidence, figure, compare) for figure in figures if figure in evidence.studies
    ]


def _or_undecided(evidence: Evidence, figure: str, compare: Callable[[SeedArray], Part]) -> Part:
    try:
        return compare(evidence.array(figure))
    except UndecidableError as error:
        return Part(evidence.studies[figure], 0, None, limit=str(error))


def edge_doubt(*sides: tuple[SeedArray, Masks]) -> str:
    """A sentence that names the m of some studies whose best η̃ is on the edge of the grid.

    There an η̃ that was not tried might be better. Each side is a study and its m, (B,).
    """
    found = [
        f"the best η̃ of {array.name} at m = {listed_sizes(array.batch_sizes[there])} is on the "
        "edge of the grid: it may do better outside"
        for array, side in sides
        if (there := side & array.at_the_edge()).any()
    ]
    return joined(*found)


def joined(*doubts: str) -> str:
    """Doubts as one line; empty if there are none."""
    return "; ".join(filter(None, doubts))


def missing_inside(low: int, high: int, ran: Collection[float], what: str) -> str:
    """Names the paper's batch sizes in low … high that were not run, as one may be best."""
    missing = [size for size in BATCH_SIZES if low <= size <= high and size not in ran]
    return f"{what} {', '.join(map(str, missing))} not run" if missing else ""


def missing_beside(low: int, high: int, ran: Collection[float], what: str) -> str:
    """Names those of the paper's two batch sizes next to low … high that were not run."""
    below = [size for size in BATCH_SIZES if size < low][-1:]
    above = [size for size in BATCH_SIZES if size > high][:1]
    missing = [size for size in (*below, *above) if size not in ran]
    return f"{what} {', '.join(map(str, missing))} not run" if missing else ""


def listed_sizes(batch_sizes: npt.NDArray[np.int64]) -> str:
    """Batch sizes as text."""
    return ", ".join(map(str, batch_sizes.tolist()))
