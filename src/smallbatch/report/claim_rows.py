"""The rows of the page's table of claims, with every comparison that a verdict was made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from smallbatch.analysis.claims import CLAIMS, Verdict
from smallbatch.report.claims import NOT_RUN, effect_text, remarks
from smallbatch.report.labels import DASH, listed
from smallbatch.report.paper import FIGURES

if TYPE_CHECKING:
    from smallbatch.report.claims import ClaimRecord, ClaimsRecord

_SHOWN = 110  # letters of remarks that are shown at once
_FEW = 3  # networks in a row; more are "every network"


@dataclass(frozen=True)
class ClaimRow:
    """A verdict as text.

    The first of ``remarks`` is shown at once; ``parts`` are its comparisons where it has several.
    """

    statement: str
    figure: str
    network: str
    verdict: str
    effect: str
    n: str
    data: str
    remarks: tuple[str, ...]
    parts: tuple[str, ...]


def claim_rows(record: ClaimsRecord) -> list[ClaimRow]:
    """A row for every verdict of what was run."""
    return [
        ClaimRow(
            claim.statement,
            claim.figure,
            network(claim.claim),
            finding.verdict,
            effect_text(finding, claim.unit),
            DASH if finding.n is None else str(finding.n),
            ", ".join(text for text in (finding.dataset, finding.scale) if text) or DASH,
            _shortened(remarks(finding, claim.unit)),
            _parts(claim, index),
        )
        for claim in record.claims
        for index, finding in enumerate(claim.findings)
        if finding.verdict != NOT_RUN
    ]


def _shortened(text: str) -> tuple[str, ...]:
    """Remarks as what is shown at once, and what is shown on demand."""
    first, *others = text.split("; ")
    while others and len(first) + len(others[0]) < _SHOWN:
        first = f"{first}; {others.pop(0)}"
    return (first, *others) if first else ()


def verdict_counts(rows: list[ClaimRow]) -> list[tuple[str, int]]:
    """The verdicts that occur, and how often."""
    found = [row.verdict for row in rows]
    return [(kind, found.count(kind)) for kind in get_args(Verdict) if kind in found]


def network(claim: str) -> str:
    """The networks that a claim is about, by its identifier; empty for one that is not known."""
    figures = next((each.studies for each in CLAIMS if each.name == claim), ())
    # A study is described as "ResNet-8, no BN, CIFAR-10, no augmentation".
    names = [FIGURES[figure.rstrip("ab")].study.partition(", ")[0] for figure in figures]
    distinct = list(dict.fromkeys(name.removeprefix("reduced ") for name in names))
    return "every network" if len(distinct) > _FEW else listed(distinct)


def _parts(claim: ClaimRecord, index: int) -> tuple[str, ...]:
    parts = claim.findings[index].parts
    if len(parts) < 2:
        return ()
    lines: list[str] = []
    for part in parts:
        line = f"{part.name}: {part.verdict}, {effect_text(part, claim.unit)}, n = {part.n}"
        lines.append("; ".join(filter(None, (line, part.reason))))
    return tuple(lines)
