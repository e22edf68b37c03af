"""The paper's statements, judged by criteria in code that were never fitted to results.

Every claim is one or more comparisons, each an effect with a lower and an upper bound
(`comparisons`). A claim is *strictly supported* on a data set if every lower bound is above 0,
*supported* if every one is above minus its margin ("nothing outside is better by a point"),
*contradicted* if an upper bound of any is below 0, and *undecided* otherwise. It is also undecided
with too few seeds, if a better cell may lie beyond the edge of the grid, if a study learnt nothing,
or if what is compared was trained on different images. Without the needed studies it is *not run*.
How often verdicts are false is measured in ``results/verdicts``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smallbatch.analysis import (
    claims_accuracy,
    claims_ghost,
    claims_memory,
    claims_rates,
    claims_stability,
    claims_time,
    claims_variance,
)
from smallbatch.analysis.claim import POINTS, Claim, Part
from smallbatch.analysis.evidence import Evidence, UndecidableError
from smallbatch.analysis.power import seeds_needed, smallest_decided

if TYPE_CHECKING:
    import pandas as pd

    from smallbatch.analysis.comparisons import Comparison

Verdict = Literal["strictly supported", "supported", "contradicted", "undecided", "not run"]

MIN_SEEDS = 3
"""Fewest seeds for a verdict; with fewer, noise and difference cannot be told apart."""

MATTERS = 0.02
"""A difference of accuracies for which the number of seeds is given: two points."""

CLAIMS: tuple[Claim, ...] = (
    *claims_accuracy.CLAIMS,
    *claims_stability.CLAIMS,
    *claims_rates.CLAIMS,
    *claims_ghost.CLAIMS,
    *claims_time.CLAIMS,
    *claims_memory.CLAIMS,
    *claims_variance.CLAIMS,
)


@dataclass(frozen=True)
class Finding:
    """The verdict on a claim on one data set.

    Attributes:
        dataset: The name of the data set; None if the claim was run on none.
        scale: How large the runs were, in words.
        verdict: strictly supported, supported, contradicted, undecided or not run.
        effect: The effect of the weakest part, in the claim's unit; above 0 if the statement holds.
        low: Its lower bound, by which it is supported.
        high: Its upper bound, by which it is contradicted. The two are bounds of their own, wrong
            in a share `inference.ALPHA` each where the decision is close, and no interval.
        n: The number of seeds (or of studies, if the claim compares those).
        decided_from: The smallest effect to either side of 0 that so many seeds of this noise
            decide half the time; of the noisiest part.
        seeds: How many seeds would support a statement that is true by two points, in four of five
            cases; None if that is unknown, or too many.
        reason: Why the claim is undecided or was not run; otherwise what limits the reading.
        parts: A mapping for each comparison: name, effect, low, high, n, verdict, reason.
    """

    dataset: str | None
    scale: str | None
    verdict: Verdict
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    decided_from: float | None = None
    seeds: int | None = None
    reason: str = ""
    parts: tuple[dict[str, Any], ...] = ()


def judge_all(
    runs: pd.DataFrame, history: pd.DataFrame, variances: pd.DataFrame, memory: pd.DataFrame
) -> list[tuple[Claim, list[Finding]]]:
    """Judge every claim on every data set that has its studies.

    Args:
        runs: The runs of all data sets, as `load_results` makes them.
        history: The epochs of all data sets, as `load_results` makes them.
        variances: As `measurements.read_variances` makes them.
        memory: As `measurements.read_memory` makes them.
    """
    evidence: list[Evidence] = []
    for dataset in sorted(runs["dataset"].unique()):
        own = [
            frame[frame["dataset"] == dataset] if len(frame) else frame
            for frame in (runs, history, variances, memory)
        ]
        evidence.append(Evidence(str(dataset), *own))
    return [(claim, judge(claim, evidence)) for claim in CLAIMS]


def judge(claim: Claim, evidence: list[Evidence]) -> list[Finding]:
    """Judge a claim on every data set that has its studies; one finding if none has."""
    findings = [_judge_on(claim, each) for each in evidence if claim.has_its_studies(each)]
    if findings:
        return findings
    reason = f"no data set has {claim.needed_text}"
    if claim.measurement and any(claim.has_its_studies(each, measured=False) for each in evidence):
        reason = "nothing was measured: run smallbatch measure"
    return [Finding(None, None, "not run", reason=reason)]


def claims_record(judged: list[tuple[Claim, list[Finding]]]) -> dict[str, Any]:
    """The content of ``claims.json``."""
    return {
        "claims": [
            {
                "claim": claim.name,
                "figure": claim.figure,
                "statement": claim.statement,
                "criterion": claim.criterion,
                "unit": claim.unit,
                "findings": [
                    {key: _plain(value) for key, value in vars(finding).items()}
                    for finding in findings
                ],
            }
            for claim, findings in judged
        ]
    }


def _judge_on(claim: Claim, evidence: Evidence) -> Finding:
    scale = _scale(claim, evidence)
    try:
        parts = claim.parts(evidence)
    except UndecidableError as error:
        reason = "; ".join([str(error), *evidence.stand_ins(claim.studies)])
        return Finding(evidence.dataset, scale, "undecided", reason=reason)
    found = [part.compare(len(parts)) if part.compare is not None else None for part in parts]
    judged = [_judge_part(part, each) for part, each in zip(parts, found, strict=True)]
    verdict = combined([part["verdict"] for part in judged])
    deciding = [
        part for part in judged if part["verdict"] == verdict and part["effect"] == part["effect"]
    ]
    # The effect of a part without one is NaN; such parts are sorted last.
    weakest = min(deciding or judged, key=lambda part: (math.isnan(part["effect"]), part["effect"]))
    said = [part["reason"] for part in judged if part["reason"]]
    reasons = dict.fromkeys([*said, *evidence.stand_ins(claim.studies)])
    power = [
        (
            smallest_decided(each, part.n, len(parts)),
            seeds_needed(each, part.n, MATTERS, len(parts)),
        )
        for part, each in zip(parts, found, strict=True)
        if each is not None and not math.isnan(smallest_decided(each, part.n))
    ]
    seeds = [count for _, count in power]
    return Finding(
        evidence.dataset,
        scale,
        verdict,
        **{key: weakest[key] for key in ("effect", "low", "high", "n")},
        decided_from=max((size for size, _ in power), default=None),
        seeds=_most(seeds) if claim.unit == POINTS else None,
        reason="; ".join(reasons),
        parts=tuple(judged),
    )


def _most(seeds: list[int | None]) -> int | None:
    """The largest number; None if there is none, or one of them is too large to be given."""
    known = [count for count in seeds if count is not None]
    return max(known, default=None) if len(known) == len(seeds) else None


def combined(verdicts: list[Verdict]) -> Verdict:
    """The verdict on a claim, from those on its parts."""
    if "contradicted" in verdicts:
        return "contradicted"
    if all(verdict == "strictly supported" for verdict in verdicts):
        return "strictly supported"
    if all(verdict in ("strictly supported", "supported") for verdict in verdicts):
        return "supported"
    return "undecided"


def decided(found: Comparison) -> Verdict:
    """The verdict that the bounds of a comparison give."""
    if found.low > 0:
        return "strictly supported"
    if found.low > -found.margin:
        return "supported"
    return "contradicted" if found.high < 0 else "undecided"


def _judge_part(part: Part, found: Comparison | None) -> dict[str, Any]:
    if found is None:
        nothing = dict.fromkeys(("effect", "low", "high"), math.nan)
        undecided = {"n": part.n, "verdict": "undecided", "reason": part.limit}
        return {"name": part.name, **nothing, **undecided}
    verdict = decided(found)
    reason = part.limit
    if part.n < MIN_SEEDS:
        verdict, reason = "undecided", f"n = {part.n}, at least {MIN_SEEDS} needed"
    elif doubt := {
        "strictly supported": part.in_doubt_above,
        "supported": part.in_doubt_above,
        "contradicted": part.in_doubt_below,
    }.get(verdict):
        verdict, reason = "undecided", doubt
    return {
        "name": part.name,
        "effect": float(found.effect),
        "low": float(found.low),
        "high": float(found.high),
        "n": part.n,
        "verdict": verdict,
        "reason": reason,
    }


def _scale(claim: Claim, evidence: Evidence) -> str:
    figures = [figure for figure in claim.studies if figure in evidence.studies]
    names = {evidence.studies[figure] for figure in figures} or set(evidence.runs["study"])
    runs = evidence.runs[evidence.runs["study"].isin(names)]
    images, height, width, epochs = (
        sorted(set(runs[key])) for key in ("n_train", "height", "width", "epochs")
    )
    label = next((str(name) for name in runs["scale"].dropna().unique()), "")
    text = (
        f"{_span(images)} images of {_span(height)}×{_span(width)}, "
        f"{_span(epochs)} {'epoch' if epochs == [1] else 'epochs'}"
    )
    return f"{label}: {text}" if label else text


def _span(values: list[Any]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, tuple):
        return [{key: _plain(inner) for key, inner in part.items()} for part in value]
    return value
