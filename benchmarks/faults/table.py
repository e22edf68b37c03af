"""The campaign's result: one table, and the numbers it was made of."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.faults import stages

COUNTS = ("runs_lost", "runs_doubled", "points_lost", "points_doubled", "bytes_differing",
          "torn", "left_over", "failed", "survivors")  # fmt: skip
HEAD = ("stage", "cases", "crashes", "files damaged", "runs lost", "runs doubled", "points lost",
        "points doubled", "bytes differing", "outputs torn", "files left over", "not resumed",
        "workers left")  # fmt: skip

INTRODUCTION = """\
Stages of a tiny pipeline are crashed at random moments, up to three times in a row, some with a
damaged checkpoint or record on top, and then run to their end. Every output is compared with that
of a twin that nobody touched, and MLflow's database with the result files. What is promised, and
which tests hold it: [docs/reliability.md](../../docs/reliability.md)."""


def write(out: Path, cases: list[dict[str, Any]], arguments: Namespace) -> int:
    """Write `README.md` and `summary.json`; 1 where anything was lost, 0 otherwise."""
    from smallbatch.training.environment import describe

    rows: dict[str, dict[str, Any]] = {}
    for case in cases:
        row = rows.setdefault(
            case["stage"], dict.fromkeys(("cases", "crashes", "damaged", *COUNTS), 0)
        )
        row["cases"] += 1
        row["crashes"] += sum(crash["code"] != 0 for crash in case.get("crashes", []))
        row["damaged"] += case.get("damaged", 0)
        row["survivors"] += sum(crash["left"] for crash in case.get("crashes", []))
        for name in COUNTS[:-1]:
            row[name] += int(case[name]) if isinstance(case.get(name), int) else name in case
    total = {key: sum(row[key] for row in rows.values()) for key in next(iter(rows.values()))}
    summary = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.faults", *sys.argv[1:]]),
        "seed": arguments.seed,
        "environment": describe("cpu"),
        "rows": rows,
        "total": total,
        "interruptions": _interruptions(cases),
        "outages": [case for case in cases if "train_seconds" in case],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "README.md").write_text(_page(summary))
    print(_page(summary))
    return int(any(total[name] for name in COUNTS))


def _interruptions(cases: list[dict[str, Any]]) -> dict[str, Any]:
    crashes = [crash for case in cases for crash in case.get("crashes", []) if crash["code"]]
    how: dict[str, int] = {}
    for crash in crashes:
        how[crash["how"]] = how.get(crash["how"], 0) + 1
    asked = [crash["took"] for crash in crashes if crash["how"] == "terminate"]
    unsaved = [crash["unsaved"] for crash in crashes if crash["unsaved"] is not None]
    return {
        "how": how,
        "slowest_end_after_sigterm": max(asked, default=None),
        "longest_since_a_checkpoint": max(unsaved, default=None),
    }


def _page(summary: dict[str, Any]) -> str:
    environment, found = summary["environment"], summary["interruptions"]
    lines = [
        "# Fault campaign",
        "",
        INTRODUCTION,
        "",
        f"- command: `{summary['command']}`, seed {summary['seed']}",
        f"- date: {summary['date']}",
        f"- hardware: {environment.get('cpu')}, {environment.get('cores')} cores",
        f"- versions: {', '.join(f'{k} {environment[k]}' for k in ('python', 'torch', 'mlflow') if environment.get(k))}",  # noqa: E501
        f"- crashes: {', '.join(f'{n} × {how}' for how, n in sorted(found['how'].items()))}",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + " --- |" * len(HEAD),
    ]
    for name, row in [*summary["rows"].items(), ("**total**", summary["total"])]:
        lines.append(f"| {name} | " + " | ".join(str(value) for value in row.values()) + " |")
    lines += ["", f"Checkpoints came every {stages.INTERVAL} s."]
    if found["longest_since_a_checkpoint"] is not None:
        lines.append(
            "At a crash, the last one of a chunk was at most "
            f"{found['longest_since_a_checkpoint']:.2f} s old."
        )
    if found["slowest_end_after_sigterm"] is not None:
        lines.append(
            f"SIGTERM ended a stage after {found['slowest_end_after_sigterm']:.2f} s at most."
        )
    if summary["outages"]:
        lines += [
            "",
            "| tracking | training, s | the same without tracking, s | warnings |",
            "| --- | --- | --- | --- |",
            *(
                f"| {case['stage'].removeprefix('tracking: ')} | {case['train_seconds']:.1f} | "
                f"{case['untracked_seconds']:.1f} | {case['warnings']} |"
                for case in summary["outages"]
            ),
        ]
    return "\n".join(lines) + "\n"
