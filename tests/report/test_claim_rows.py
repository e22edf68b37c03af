from __future__ import annotations

import pytest

from smallbatch.analysis.claims import CLAIMS
from smallbatch.report.claim_rows import claim_rows, network, verdict_counts
from smallbatch.report.claims import ClaimsRecord


def _finding(verdict: str, **more: object) -> dict[str, object]:
    return {"dataset": "cifar10", "scale": None, "verdict": verdict, "effect": 0.02, "low": 0.01,
            "high": 0.03, "n": 3, "reason": "", "parts": [], **more}  # fmt: skip


PART = {"name": "one", "effect": -0.02, "low": -0.03, "high": 0.01, "n": 3, "verdict": "undecided",
        "reason": "because"}  # fmt: skip


POWER = "could tell 4.5 points half the time; 18 seeds would tell 2 points"


def _record(*findings: dict[str, object]) -> ClaimsRecord:
    claim = {"claim": CLAIMS[0].name, "figure": "1", "statement": "s", "criterion": "c",
             "unit": "accuracy", "findings": list(findings)}  # fmt: skip
    return ClaimsRecord.model_validate({"claims": [claim]})


def test_only_what_was_run_has_a_row() -> None:
    rows = claim_rows(_record(_finding("supported"), _finding("not run", dataset=None, n=None)))
    assert [row.verdict for row in rows] == ["supported"]
    assert verdict_counts(rows) == [("supported", 1)]
    assert rows[0].effect == "+2 [+1, +3] points"
    assert rows[0].data == "cifar10"


def test_a_weakest_of_many_has_every_comparison_and_one_alone_has_none() -> None:
    several, one = claim_rows(
        _record(_finding("undecided", parts=[PART, PART]), _finding("undecided", parts=[PART]))
    )
    assert several.parts == ("one: undecided, −2 [−3, +1] points, n = 3; because",) * 2
    assert one.parts == ()


@pytest.mark.parametrize(
    ("reason", "shown", "rest"),
    [
        ("", None, ()),
        ("short", "short", ()),
        ("one; two", "one; two", ()),
        ("a" * 100 + "; " + "b" * 50, "a" * 100, ("b" * 50,)),
    ],
)
def test_long_remarks_are_shown_on_demand(
    reason: str, shown: str | None, rest: tuple[str, ...]
) -> None:
    (row,) = claim_rows(_record(_finding("supported", reason=reason)))
    assert row.remarks == ((shown, *rest) if shown else ())


@pytest.mark.parametrize(
    ("verdict", "doubt", "shown"),
    [
        ("undecided", "", f"another model; {POWER}"),
        ("undecided", "the best is on the edge", "another model"),
        ("supported", "", "another model"),
    ],
)
def test_what_seeds_would_decide_is_told_unless_a_doubt_leaves_it_open(
    verdict: str, doubt: str, shown: str
) -> None:
    """A model that stands in for the paper's is no such doubt."""
    found = {"reason": "another model", "decided_from": 0.045, "seeds": 18}
    (row,) = claim_rows(_record(_finding(verdict, parts=[{**PART, "reason": doubt}], **found)))
    assert "; ".join(row.remarks) == shown


@pytest.mark.parametrize("claim", [claim.name for claim in CLAIMS])
def test_every_claim_names_its_network(claim: str) -> None:
    found = network(claim)
    assert found
    assert "Net" in found or found == "every network"


def test_networks_are_told_apart() -> None:
    assert network("best-batch-size-fig-1") == "AlexNet"
    assert network("best-batch-size-fig-2") == "ResNet-8"
    assert network("best-batch-size-fig-8") == "ResNet-32 with BN"
    assert network("range-shrinks") == "every network"
    assert network("an older claim") == ""
