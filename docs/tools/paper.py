"""Writes docs/paper.md: the paper's claims from the code, their verdicts from the results.

Run it after a change of either: ``python docs/tools/paper.py``. A test compares the page with it.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import get_args

from smallbatch.analysis.claims import CLAIMS, Verdict
from smallbatch.report.claims import (
    ClaimRecord,
    FindingRecord,
    effect_text,
    read_claims,
    remarks,
)
from smallbatch.report.labels import listed
from smallbatch.report.paper import FIGURES, paper_figure
from smallbatch.text import count

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/paper.md"

HEAD = """\
# The paper, claim by claim

<!-- Written by docs/tools/paper.py from the code and the results: change those, then run it. -->

What Masters & Luschi's [*Revisiting Small Batch Training for Deep Neural
Networks*](https://arxiv.org/abs/1804.07612) (2018) says, statement by statement, in our words. Each
has the rule by which it counts as true, and what the [committed runs](../results/README.md) say so
far.

- A verdict takes three seeds. It is *strictly supported* if the statement holds beyond the noise of
  the seeds, *supported* if nothing outside is better by a point, *contradicted* if it fails beyond
  the noise, else *undecided*.
- The rule in full, and what was changed in it after results were seen, is in
  [decisions](decisions.md#claims).
- The scale `small` shrinks images, epochs and grid. A verdict at that scale is one about that
  scale.
- Your own runs are judged in the same way: `smallbatch claims`.
- Effects are above 0 where the statement holds. The two numbers in brackets are the bounds that
  decide. n is the number of seeds, where the claim does not say otherwise.
- The other words are in [concepts](concepts.md).
"""


_OVER_STUDIES = ("15", "16")
"""Figures that sum up all studies: a verdict is one about those that were run."""


def page() -> str:
    """The page's Markdown."""
    records = {
        path.parent.name: claims
        for path in sorted(ROOT.glob("results/*/claims.json"))
        if _anything_run(claims := {claim.claim: claim for claim in read_claims(path).claims})
    }
    counts = [_counts(*each) for each in records.items()]
    texts = [HEAD, "So far:\n", *counts, _run_nowhere(records.values()), ""]
    for label, figure in FIGURES.items():
        own = [claim for claim in CLAIMS if paper_figure(claim.figure.split("/")[0]) is figure]
        title = "In the text" if label == "text" else f"Fig. {label}: {figure.study}"
        texts.append(f"## {title}\n")
        if not own:
            texts.append(f"The paper concludes: {figure.conclusion}.\n")
            where = next(claim for claim in CLAIMS if label in claim.figure.split("/"))
            first = where.figure.split("/")[0]
            texts.append(f"It is judged together with Fig. {first}, above.\n")
        for claim in own:
            texts.append(f"**{claim.statement}.**\n")
            texts.append(f"- *Judged:* {claim.criterion}")
            found = [
                _verdict(name, record, finding)
                for name, claims in records.items()
                if (record := claims.get(claim.name))
                for finding in record.findings
                if finding.verdict != "not run"
            ]
            texts += [*(found or ["- **Not run** so far."]), ""]
    return "\n".join(texts).rstrip() + "\n"


def _anything_run(claims: dict[str, ClaimRecord]) -> bool:
    """Whether results are of any of the paper's studies; others say nothing about its claims."""
    return any(it.verdict != "not run" for claim in claims.values() for it in claim.findings)


def _verdict(results: str, claim: ClaimRecord, finding: FindingRecord) -> str:
    """One verdict, as an item of a list."""
    amount = f"n = {finding.n}, " if finding.n else ""
    if claim.figure in _OVER_STUDIES:
        amount += f"{count(len(finding.parts), 'study', 'studies')}, "
    head = f"- [{results}](../results/{results}/): **{finding.verdict}**, {amount}{finding.scale}."
    effect = effect_text(finding, claim.unit)
    more = [f"effect {effect}" if finding.effect is not None else "", remarks(finding, claim.unit)]
    return " ".join([head, *(f"*{text}.*" for text in more if text)])


def _counts(results: str, claims: dict[str, ClaimRecord]) -> str:
    """How many statements have which verdict, as an item of a list.

    What the code has been taught since the results were judged counts as not run: it is of studies
    that these results do not have.
    """
    verdicts: list[str] = []
    for claim in CLAIMS:
        found = claims[claim.name].findings if claim.name in claims else []
        verdicts += [finding.verdict for finding in found] or ["not run"]
    counts = ", ".join(
        f"{verdicts.count(kind)} {kind}" for kind in get_args(Verdict) if kind in verdicts
    )
    return f"- [{results}](../results/{results}/): of {count(len(CLAIMS), 'statement')} {counts}."


def _run_nowhere(records: Collection[dict[str, ClaimRecord]]) -> str:
    """What none of the results has run, as an item of a list."""
    run = {
        claim.claim
        for claims in records
        for claim in claims.values()
        if any(finding.verdict != "not run" for finding in claim.findings)
    }
    left = [claim.figure for claim in CLAIMS if claim.name not in run]
    figures = listed(list(dict.fromkeys(left)))
    return f"- In none of them: {count(len(left), 'statement')}, of Figs. {figures}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
