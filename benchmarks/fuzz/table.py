"""The fuzzer's result: one table, and the numbers it was made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smallbatch import machine, markdown

INTRODUCTION = """\
Damaged files and odd values through the command line, in one process per batch, with the training
itself, the planning's measurements and `bench` replaced by what checks their settings. Right is an
exit status of 0, with the input read as what it says, or of 2 with one line. What is promised:
[docs/reliability.md](../../docs/reliability.md).

- *70*: faults of the program. *hangs*: cases of over 10 s, or that took the process with them.
- *other*: any other exit status, several lines, a traceback, a secret shown.
- *silent*: accepted, but read as something else than another reader of the file reads.
"""


def write(out: Path, batches: Sequence[dict[str, Any]], names: Sequence[str]) -> int:
    """Write README.md and summary.json; 1 if a case ended as none may, else 0."""
    rows = [_row(name, [it for it in batches if it["target"] == name]) for name in names]
    failures = [failure for batch in batches for failure in batch["failures"]]
    total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "target"}
    about = machine.describe("cpu")
    facts = {
        "code": batches[0]["code"], "seed": batches[0]["seed"], "date": batches[-1]["date"],
        "machine": about, "total": total, "targets": rows, "failures": failures,
    }  # fmt: skip
    (out / "summary.json").write_text(json.dumps(facts, indent=1) + "\n")
    cells = [[it["target"], *(f"{it[key]:,}" for key in _COUNTS), f"{it['seconds']:.0f}"]
             for it in [*rows, {"target": "all", **total}]]  # fmt: skip
    head = (
        f"`python -m benchmarks.fuzz --seed {facts['seed']}`: {total['cases']:,} cases, "
        f"{total['seconds']:.0f} processor seconds, {str(facts['date'])[:10]}, on {about['cpu']}, "
        f"{about['cores']} cores; Python {about['python']}, torch {about['torch']}, smallbatch "
        f"{about['smallbatch']}, commit {about['git_commit']}, code {facts['code']} "
        "(`python -m benchmarks.code` tells whether that is the code as it stands)."
    )
    text = f"# Fuzzing\n\n{head}\n\n{INTRODUCTION}\n"
    text += markdown.table(["target", *_COUNTS, "s"], cells) + "\n"
    if failures:
        shown = [
            [it["target"], it["number"], it["kind"], _cell(it["why"]), _cell(it["edits"])]
            for it in _kinds(failures)
        ]
        columns = ["target", "number", "kind", "first of its kind", "edits"]
        text += "\n" + markdown.table(columns, shown)
    (out / "README.md").write_text(text.rstrip() + "\n")
    print(text)
    return 1 if failures else 0


_COUNTS = ("cases", "0", "2", "70", "hangs", "other", "silent")


def _row(name: str, batches: Sequence[dict[str, Any]]) -> dict[str, Any]:
    codes: Counter[str] = Counter()
    for batch in batches:
        codes.update(batch["codes"])
    kinds = Counter(failure["kind"] for batch in batches for failure in batch["failures"])
    return {
        "target": name, "cases": codes.total(), "0": codes["0"], "2": codes["2"], "70": codes["70"],
        "hangs": codes["hang"], "other": kinds["exit"] - codes["70"], "silent": kinds["silent"],
        "seconds": round(sum(batch["seconds"] for batch in batches), 1),
    }  # fmt: skip


def _kinds(failures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first failure of each kind."""
    found = {(it["target"], it["kind"], it["why"][:60]): it for it in reversed(failures)}
    return [*found.values()][::-1]


def _cell(value: object) -> str:
    return str(value)[:200]
