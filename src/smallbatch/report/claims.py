"""The verdicts on the paper's claims: `claims.json`, written and read, and tables of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, get_args

from pydantic import BaseModel, ConfigDict, Field

from smallbatch.analysis.cells import summarise_cells
from smallbatch.analysis.claim import POINTS
from smallbatch.analysis.claims import CLAIMS, Verdict, claims_record, judge_all
from smallbatch.analysis.evaluation import read_runs, runs_digest
from smallbatch.analysis.frames import load_results
from smallbatch.analysis.measurements import read_memory, read_variances
from smallbatch.analysis.mixed import mixed_results
from smallbatch.records.reading import read_json
from smallbatch.records.schema import MOST
from smallbatch.report.labels import DASH
from smallbatch.report.tables import Table
from smallbatch.text import count

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

HEADERS = (
    "the paper's statement",
    "Fig.",
    "verdict",
    "effect [bounds]",
    "n",
    "data",
    "remarks",
)
NOT_RUN = "not run"


class PartRecord(BaseModel):
    """A comparison of a verdict in ``claims.json``; see `analysis.claim.Part`."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    name: str
    effect: float | None
    low: float | None
    high: float | None
    n: Annotated[int, Field(ge=0, le=MOST)]
    verdict: Verdict
    reason: str


class FindingRecord(BaseModel):
    """A verdict in ``claims.json``; see `analysis.claims.Finding`."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    dataset: str | None
    scale: str | None
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    n: Annotated[int, Field(ge=0, le=MOST)] | None
    decided_from: float | None = None
    seeds: Annotated[int, Field(ge=0, le=MOST)] | None = None
    reason: str
    parts: list[PartRecord] = []


class ClaimRecord(BaseModel):
    """A claim in ``claims.json``; see `analysis.claim.Claim`."""

    model_config = ConfigDict(strict=True, frozen=True)

    claim: str
    figure: str
    statement: str
    criterion: str
    unit: str
    findings: list[FindingRecord]


class ClaimsRecord(BaseModel):
    """A whole ``claims.json``.

    Attributes:
        claims: The claims with their verdicts.
        runs_sha256: The digest of the runs they were judged on, `analysis.evaluation.runs_digest`;
            older files lack it.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    runs_sha256: str | None = None
    claims: list[ClaimRecord]


def claims_tables(record: ClaimsRecord) -> list[Table]:
    """A table of verdicts, and two folded ones, of the criteria and of what was not run."""
    criteria = [[claim.statement, claim.figure, claim.criterion] for claim in record.claims]
    verdicts = rows(record)
    judged = [row for row in verdicts if row[2] != NOT_RUN]
    not_run = [row[:2] for row in verdicts if row[2] == NOT_RUN]
    return [
        Table("The paper's claims, judged.", HEADERS, judged, prose=True),
        Table("Not run.", HEADERS[:2], not_run, prose=True, folded=True),
        Table(
            "When a claim counts as true.",
            ("the paper's statement", "Fig.", "criterion"),
            criteria,
            prose=True,
            folded=True,
        ),
    ]


def counts_sentence(record: ClaimsRecord) -> str:
    """A sentence with the number of verdicts of each kind."""
    verdicts = [finding.verdict for claim in record.claims for finding in claim.findings]
    return ", ".join(f"{verdicts.count(kind)} {kind}" for kind in get_args(Verdict))


def read_claims(path: Path) -> ClaimsRecord:
    """Read a ``claims.json``.

    Raises:
        UserError: The file is missing, or it is not such a file.
    """
    return read_json(ClaimsRecord, path, "`smallbatch report` writes it")


def judge_models(models: Path, measurements: Path) -> tuple[ClaimsRecord, list[str]]:
    """Judge the result files of a folder, without tables and figures.

    Args:
        models: The folder of the columns.
        measurements: The folder of what `smallbatch measure` wrote; it need not exist.

    Returns:
        The content of a ``claims.json``, and lines on what to bear in mind.

    Raises:
        UserError: There is no complete column, or a file is damaged.
    """
    results = load_results(models)
    measured = read_variances(measurements), read_memory(measurements)
    lines = mixed_results(results.runs, summarise_cells(results.runs))
    if results.skipped:
        lines.append(f"skipped {len(results.skipped)} unfinished: {', '.join(results.skipped)}")
    if not measurements.is_dir():
        lines.append(f"{measurements}: no such folder, so no measurement is judged")
    return judged_record(results.runs, results.history, *measured), lines


def judged_record(
    runs: pd.DataFrame, history: pd.DataFrame, variances: pd.DataFrame, memory: pd.DataFrame
) -> ClaimsRecord:
    """The content of ``claims.json`` for some runs, as `judge_all` takes them."""
    judged = claims_record(judge_all(runs, history, variances, memory))
    return ClaimsRecord.model_validate({"runs_sha256": runs_digest(runs), **judged})


def as_text(record: ClaimsRecord) -> str:
    """The content of ``claims.json`` as it is written."""
    return record.model_dump_json(indent=1)


def stale(path: Path, record: ClaimsRecord) -> str | None:
    """A line, if the evaluation beside a ``claims.json`` is of other runs than its verdicts.

    Raises:
        UserError: The evaluation is damaged.
    """
    evaluation = path.parent / "evaluation"
    if record.runs_sha256 is None or not (evaluation / "runs.parquet").exists():
        return None
    if runs_digest(read_runs(evaluation)) == record.runs_sha256:
        return None
    return f"{path}: not of the runs in {evaluation}; run smallbatch report"


def unknown_then(path: Path, record: ClaimsRecord) -> str | None:
    """A line, if a ``claims.json`` is of a version that knew fewer of the paper's claims."""
    known = {claim.claim for claim in record.claims}
    lacking = [claim.figure for claim in CLAIMS if claim.name not in known]
    if not lacking:
        return None
    of_all, figures = count(len(CLAIMS), "claim"), ", ".join(dict.fromkeys(lacking))
    return (
        f"{path}: of an earlier version, which had not {len(lacking)} of {of_all} "
        f"(Fig. {figures}); `smallbatch report` judges them all"
    )


def rows(record: ClaimsRecord) -> list[list[str]]:
    """The verdicts as text, a row for each, under `HEADERS`."""
    return [
        [
            claim.statement,
            claim.figure,
            finding.verdict,
            effect_text(finding, claim.unit),
            DASH if finding.n is None else str(finding.n),
            ", ".join(text for text in (finding.dataset, finding.scale) if text) or DASH,
            remarks(finding, claim.unit),
        ]
        for claim in record.claims
        for finding in claim.findings
    ]


_ROUNDING = 1e-9


def remarks(finding: FindingRecord, unit: str) -> str:
    """What limits a verdict, and what its experiment could have decided."""
    return "; ".join(filter(None, (finding.reason, _power(finding, unit))))


def _power(finding: FindingRecord, unit: str) -> str:
    """What an undecided claim's experiment could have decided, in words."""
    # Where a doubt leaves it open, which a part then names, more seeds would not decide it.
    doubt = any(part.reason for part in finding.parts)
    if finding.verdict != "undecided" or doubt or finding.decided_from is None:
        return ""
    factor, name = _shown(unit)
    text = f"could tell {factor * finding.decided_from:.2g} {name} half the time"
    if finding.seeds is not None and finding.n is not None and finding.seeds > finding.n:
        text += f"; {finding.seeds} seeds would tell 2 points"
    return text


def effect_text(finding: FindingRecord | PartRecord, unit: str) -> str:
    """An effect with its bounds, which are missing where there is none: too few runs to know."""
    factor, name = _shown(unit)

    def signed(number: float) -> str:
        shown = factor * number
        # Sums of seeds leave a rounding error where there is no difference.
        return f"{0.0 if abs(shown) < _ROUNDING else shown:+.3g}".replace("-", "−")

    effect, low, high = finding.effect, finding.low, finding.high
    if effect is None:
        return DASH
    if low is not None and high is not None and low <= high:
        return f"{signed(effect)} [{signed(low)}, {signed(high)}] {name}"
    bounds = [f"at least {signed(low)}"] if low is not None else []
    bounds += [f"at most {signed(high)}"] if high is not None else []
    return f"{signed(effect)} {name}, {' and '.join(bounds) or 'without bounds'}"


def _shown(unit: str) -> tuple[int, str]:
    return (100, "points") if unit == POINTS else (1, unit)
