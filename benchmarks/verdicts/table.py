"""The table of false verdicts, from the counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scipy.special import betaincinv

from benchmarks.code import digest
from benchmarks.verdicts.noises import NOISES, WILD
from smallbatch.analysis.comparisons import MARGIN
from smallbatch.analysis.inference import ALPHA, PRIOR
from smallbatch.markdown import table

ALLOWED, ALLOWED_WILD = 0.06, 0.08
"""The largest upper bound of a rate of false verdicts, of any noise and of the wild one."""


def upper(false: int, draws: int) -> float:
    """The one-sided 95 % upper bound of a rate (Clopper and Pearson)."""
    return 1.0 if false == draws else float(betaincinv(false + 1, draws - false, 0.95))


def too_many(counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The counts whose upper bound is above what is allowed."""
    return [
        each
        for each in counts
        if upper(each["false"], each["draws"])
        > (ALLOWED_WILD if each["noise"] == WILD else ALLOWED)
    ]


def write(out: Path, counts: list[dict[str, Any]], draws: int) -> None:
    """Write ``summary.json`` and the README."""
    out.mkdir(parents=True, exist_ok=True)
    summary = {
        "code": digest("verdicts"),
        "alpha": ALPHA,
        "prior": PRIOR,
        "margin": MARGIN,
        "draws": draws,
        "counts": counts,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    (out / "README.md").write_text(page(counts, draws))


def page(counts: list[dict[str, Any]], draws: int) -> str:
    """The README's text."""
    worst, wild = (
        max(
            (each for each in counts if (each["noise"] == WILD) == is_wild),
            key=lambda each: each["false"] / each["draws"],
        )
        for is_wild in (False, True)
    )
    failed = too_many(counts)
    seeds = sorted({each["n"] for each in counts})
    rows = [
        [
            kind,
            noise,
            *(
                " / ".join(
                    f"{100 * each['false'] / each['draws']:.1f}"
                    for direction in ("contradicted", "supported")
                    for each in counts
                    if (each["kind"], each["noise"], each["n"], each["direction"])
                    == (kind, noise, n, direction)
                )
                for n in seeds
            ),
        ]
        for kind in dict.fromkeys(each["kind"] for each in counts)
        for noise in NOISES
    ]
    met = (
        "Every one is within it."
        if not failed
        else f"{len(failed)} of {len(counts)} are not: "
        + "; ".join(f"{it['kind']}, {it['noise']}, n = {it['n']}" for it in failed)
        + "."
    )
    worlds = max(each["worlds"] for each in counts)
    return f"""# How often verdicts are false

Simulated: accuracies made up so that a claim's statement is exactly at its boundary, neither true
nor false by a margin, where a verdict is false. Each number is the share of false verdicts in the
worst of up to {worlds} truths of its kind (other grids, batch sizes, optima that are flat or peaked
over η̃, one rival or many), found with other draws, and then counted in {draws:,} draws.

The worst are {_rate(worst)} ({worst["kind"]}, {worst["noise"]}, n = {worst["n"]}) and,
where two batch sizes have three times the noise of the others, {_rate(wild)}
({wild["kind"]}, n = {wild["n"]}). Allowed are {100 * ALLOWED:g} % and {100 * ALLOWED_WILD:g} %
for the upper bound. {met}

The rule: `src/smallbatch/analysis/inference.py`, `comparisons.py` and `comparisons_rates.py`; the
level of a bound is {100 * ALPHA:g} %. The worlds: `benchmarks/verdicts/worlds.py` and `rates.py`.
Again: `python -m benchmarks.verdicts` (`--short` for a look, `--kinds` for some of them). What the
rule changed of the committed results' verdicts: [differences.md](differences.md).

In %, contradicted though true / supported though false, by the number of seeds:

{table(("kind of claim", "noise", *(f"n = {n}" for n in seeds)), rows)}
"""


def _rate(each: dict[str, Any]) -> str:
    share, bound = 100 * each["false"] / each["draws"], upper(each["false"], each["draws"])
    return f"{share:.1f} % (95 % upper bound {100 * bound:.1f} %)"
