"""The claims as tables of the page, and as a Markdown table made from `claims.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smallbatch.errors import UserError
from smallbatch.markdown import table
from smallbatch.report.labels import DASH
from smallbatch.report.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

_HEADERS = (
    "the paper's statement",
    "Fig.",
    "verdict",
    "effect [95 % interval]",
    "n",
    "data",
    "remarks",
)
_NOT_RUN = "not run"


def claims_tables(record: dict[str, Any]) -> list[Table]:
    """A table of verdicts, and two folded ones, of the criteria and of what was not run.

    Args:
        record: The content of ``claims.json``.
    """
    criteria = [[claim["statement"], claim["figure"], claim["criterion"]] for claim in _all(record)]
    rows = _rows(record)
    judged = [row for row in rows if row[2] != _NOT_RUN]
    not_run = [row[:2] for row in rows if row[2] == _NOT_RUN]
    return [
        Table("The paper's claims, judged.", _HEADERS, judged, prose=True),
        Table("Not run.", _HEADERS[:2], not_run, prose=True, folded=True),
        Table(
            "When a claim counts as true.",
            ("the paper's statement", "Fig.", "criterion"),
            criteria,
            prose=True,
            folded=True,
        ),
    ]


def counts_sentence(record: dict[str, Any]) -> str:
    """A sentence with the number of verdicts of each kind."""
    verdicts = [finding["verdict"] for claim in _all(record) for finding in claim["findings"]]
    kinds = ("supported", "contradicted", "undecided", _NOT_RUN)
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in kinds)


def markdown(path: Path) -> str:
    """The table of verdicts in Markdown.

    Args:
        path: A ``claims.json``.

    Raises:
        UserError: The file is missing, or it is not such a file.
    """
    try:
        return table(_HEADERS, _rows(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `smallbatch report` writes it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no file of claims ({error})") from None


def _all(record: dict[str, Any]) -> list[dict[str, Any]]:
    return record["claims"]


def _rows(record: dict[str, Any]) -> list[list[str]]:
    return [
        [
            claim["statement"],
            claim["figure"],
            finding["verdict"],
            _effect(finding, claim["unit"]),
            DASH if finding["n"] is None else str(finding["n"]),
            ", ".join(text for text in (finding["dataset"], finding["scale"]) if text) or DASH,
            finding["reason"],
        ]
        for claim in _all(record)
        for finding in claim["findings"]
    ]


def _effect(finding: dict[str, Any], unit: str) -> str:
    numbers = [finding[key] for key in ("effect", "low", "high")]
    if any(number is None for number in numbers):
        return DASH
    factor, name = (100, "points") if unit == "accuracy" else (1, unit)
    effect, low, high = (f"{factor * number:+.3g}" for number in numbers)
    return f"{effect} [{low}, {high}] {name}"
