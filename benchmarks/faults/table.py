"""The campaign's result: one table, and the numbers it was made of."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import code
from benchmarks.faults import kills, stages
from benchmarks.faults.outages import HEALTHY, UNTRACKED
from smallbatch import markdown

COUNTS = {
    "runs_lost": "runs lost",
    "runs_doubled": "runs doubled",
    "unended": "runs not FINISHED",
    "points_lost": "points lost",
    "points_doubled": "points doubled",
    "out_of_order": "points out of order",
    "incomplete_before_sync": "missing before sync",
    "bytes_differing": "bytes differing",
    "torn": "outputs torn",
    "left_over": "files left over",
    "failed": "failed",
    "amiss": "crashes amiss",
    "survivors": "workers left",
    "overdue": "checkpoints overdue",
    "tracebacks": "tracebacks",
    "warnings_amiss": "warnings amiss",
    "slower": "slower",
}
"""What must be zero, and its heading."""
INJECTED = ("cases", "crashes", "damaged")
KILLS = 200
"""SIGKILLs of the full campaign, at least."""
SLOWER = 1.1
"""An outage's median training time over a healthy server's, at most."""

INTRODUCTION = f"""\
Stages of a tiny pipeline are crashed at random moments, one to three times in a row, some with a
damaged checkpoint, record or plan on top, and then run to their end. Every output is compared with
that of a twin that nobody touched, and MLflow's database with the result files. What is promised,
and which tests hold it: [docs/reliability.md](../../docs/reliability.md).

The criteria, in the code before anything was measured: at least {KILLS} SIGKILLs; every count right
of "files damaged" is zero.

- *runs* are MLflow's, the columns' parents among them; a run below no column is lost. *Points* are
  metric values; one is *out of order* if it is dated before an earlier step's.
- *missing before sync*: with a healthy store, runs, points and columns that the training itself did
  not bring there.
- *files left over*: those in the folder that the twin has not, temporary ones of checkpoints too.
- *checkpoints overdue*: crashes at which a worker had more than {kills.OVERDUE_S:g} s of work to
  lose, where checkpoints come every {stages.INTERVAL:g} s. It counts from the chunk's start.
- *crashes amiss*: a stage that ended by itself with an error, or took more than {kills.END_S:g} s
  to end after SIGTERM, or a training whose exit code is none of those promised.
- *tracebacks*: in what the commands print.
- *warnings amiss*: an outage gives one warning (at most one where the server answers late), a
  healthy store none.
- *slower*: under an outage, the median training time is more than {SLOWER:g} times that with a
  healthy server.

Zero there means: not found, or not asked of that stage."""


def write(out: Path, cases: list[dict[str, Any]], arguments: Namespace) -> int:
    """Write `README.md` and `summary.json`; 1 where a criterion is missed, 0 otherwise."""
    from smallbatch.machine import describe, git_state

    commit, dirty = git_state(code.ROOT)
    rows: dict[str, dict[str, int]] = {}
    for case in cases:
        row = rows.setdefault(case["stage"], dict.fromkeys((*INJECTED, *COUNTS), 0))
        row["cases"] += 1
        row["crashes"] += len(_injected(case))
        row["damaged"] += len(case.get("damaged", []))
        for name in COUNTS:
            row[name] += int(name in case) if name == "failed" else case.get(name, 0)
    outages = _outages(cases)
    for stage, outage in outages.items():
        if stage == f"tracking: {UNTRACKED}":
            continue
        rows[stage]["slower"] = int((outage["over_healthy"] or 0) > SLOWER)
    total = {key: sum(row[key] for row in rows.values()) for key in (*INJECTED, *COUNTS)}
    crashes = [crash for case in cases for crash in _injected(case)]
    how = Counter(crash["how"] for crash in crashes)
    killed = sum(n for kind, n in how.items() if kind.startswith("kill"))
    summary = {
        "command": shlex.join(["python", "-m", "benchmarks.faults", *sys.argv[1:]]),
        "seed": arguments.seed,
        "dates": [f(case["date"] for case in cases) for f in (min, max)],
        "seconds": sum(case["took"] for case in cases),
        "environment": {**describe("cpu"), "git_commit": commit, "git_dirty": dirty},
        "code": code.digest("faults"),
        "rows": rows,
        "total": total,
        "crashes": dict(how),
        "kills": killed,
        "damaged": dict(Counter(kind for case in cases for kind in case.get("damaged", []))),
        "slowest_end_after_sigterm": _largest(crashes, "took", "terminate"),
        "most_work_to_lose": _largest(crashes, "unsaved"),
        "outages": outages,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "README.md").write_text(_page(summary))
    print(_page(summary))
    full = not (arguments.short or arguments.only)
    few = full and killed < KILLS
    return int(few or any(total[name] for name in COUNTS))


def _injected(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [crash for crash in case.get("crashes", []) if crash["how"] != "ended"]


def _outages(cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Seconds of every training with and without tracking, their medians and ratios, by stage."""
    timed: dict[str, list[dict[str, Any]]] = {}
    for case in cases:
        if "train_seconds" in case:
            timed.setdefault(case["stage"], []).append(case)
    seconds = {stage: [case["train_seconds"] for case in own] for stage, own in timed.items()}
    medians = {stage: median(values) for stage, values in seconds.items()}

    def over(stage: str, other: str) -> float | None:
        base = medians.get(f"tracking: {other}")
        return medians[stage] / base if base else None

    return {
        stage: {
            "train_seconds": seconds[stage],
            "median": medians[stage],
            "over_healthy": over(stage, HEALTHY),
            "over_untracked": over(stage, UNTRACKED),
            "command_seconds": median(case["command_seconds"] for case in own),
            "warnings": [line for case in own for line in case["warnings"]],
        }
        for stage, own in timed.items()
    }


def _largest(crashes: list[dict[str, Any]], what: str, how: str = "") -> float | None:
    found = [it[what] for it in crashes if it["how"].startswith(how) and it[what] is not None]
    return max(found, default=None)


def _page(summary: dict[str, Any]) -> str:
    machine, first_last = summary["environment"], summary["dates"]
    versions = [f"{name} {machine[name]}" for name in ("python", "torch") if machine.get(name)]
    dirty = " with changes" if machine["git_dirty"] else ""
    total = ("**total**", summary["total"])
    lines = [
        "# Fault campaign",
        "",
        INTRODUCTION,
        "",
        f"- command: `{summary['command']}`, seed {summary['seed']}",
        f"- date: {' to '.join(first_last)}; the cases took {summary['seconds'] / 60:.0f} minutes",
        f"- code: commit {machine['git_commit']}{dirty}, digest {summary['code']} in every case",
        "- `python -m benchmarks.code` tells whether that is the code as it stands",
        f"- hardware: {machine['cpu']}, {machine['cores']} cores; {', '.join(versions)}",
        f"- crashes: {_listed(summary['crashes'])}: {summary['kills']} SIGKILLs",
        f"- damaged: {_listed(summary['damaged']) or 'none'}",
        "",
        markdown.table(
            ["stage", "cases", "crashes", "files damaged", *COUNTS.values()],
            [[name, *row.values()] for name, row in [*summary["rows"].items(), total]],
        ),
        "",
    ]
    if summary["most_work_to_lose"] is not None:
        lines.append(
            f"At a crash a worker had at most {summary['most_work_to_lose']:.2f} s of work to lose."
        )
    if summary["slowest_end_after_sigterm"] is not None:
        lines.append(
            f"SIGTERM ended a stage after {summary['slowest_end_after_sigterm']:.2f} s at most."
        )
    return "\n".join(lines + _timed(summary["outages"])) + "\n"


def _timed(outages: dict[str, dict[str, Any]]) -> list[str]:
    if not outages:
        return []
    head = ["tracking", "trainings, s", "median, s", "/ healthy server", "/ no tracking",
            "whole command, median, s"]  # fmt: skip
    rows = [
        [
            stage.removeprefix("tracking: "),
            ", ".join(f"{value:.1f}" for value in it["train_seconds"]),
            f"{it['median']:.1f}",
            *(f"{it[key]:.2f}" if it[key] else "" for key in ("over_healthy", "over_untracked")),
            f"{it['command_seconds']:.1f}",
        ]
        for stage, it in outages.items()
    ]
    return [
        "",
        "Seconds from a training's start to its result files, one worker; every round of trainings",
        "has each line once. The whole command adds its start, and at the end the wait for MLflow.",
        "",
        markdown.table(head, rows),
    ]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} × {name}" for name, n in sorted(counts.items()))
