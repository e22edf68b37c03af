"""One case: a stage crashed at random moments, files damaged, and then run to its end."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.faults import database, processes, stages
from benchmarks.faults.stages import Stage, Twin

OVERDUE_S = stages.INTERVAL + 1.0
"""More seconds of lost work break the promise; updates and evaluations take some hundredths."""
END_S = 5.0
"""Seconds in which SIGTERM ends a stage."""
CODES = {"terminate": {0, 75, -15}, "kill worker": {0, 2}, "ended": {0}}
"""Allowed exit codes of a training; -15 before it watches, 0 where it was all but done."""
MIRROR_S = 20.0
"""Seconds in which the mirror of a killed training leaves; LEAVE_S of smallbatch.tracking and more."""  # noqa: E501


def run_case(stage: Stage, twin: Twin, folder: Path, draw: random.Random) -> dict[str, Any]:
    """Crash a stage one to three times, let it finish, and compare it with its twin."""
    shutil.copytree(twin.prepared, folder, dirs_exist_ok=True)
    case: dict[str, Any] = {"stage": stage.name, "crashes": [], "damaged": [], "torn": 0}
    moments = sorted(draw.uniform(0, 0.9 * twin.seconds) for _ in range(draw.randint(1, 3)))
    pids: list[int] = []
    for delay in (b - a for a, b in pairwise([0.0, *moments])):
        pid = processes.start(folder, stages.command(stage.words, stage.tracked))
        pids.append(pid)
        crash = processes.crash(pid, delay, draw, lambda them: stages.unsaved(folder, them))
        case["crashes"].append(asdict(crash))
        case["torn"] += _torn(stages.outputs(stage, folder), twin) + _half_a_page(folder)
        if crash.code == 0:
            break
        case["damaged"] += _damage(folder, draw)
    try:
        stages.run(folder, stage.words, stage.tracked)
    except RuntimeError as error:
        case["failed"] = str(error)
    else:
        if stage.tracked:
            processes.wait_for_end([it for pid in pids for it in processes.members(pid)], MIRROR_S)
        case |= _compare(stage, twin, folder)
    case["tracebacks"] = (folder / "log").read_text().count("Traceback")
    case["overdue"] = sum((it["unsaved"] or 0) > OVERDUE_S for it in case["crashes"])
    case["amiss"] = sum(_amiss(stage, it) for it in case["crashes"])
    case["survivors"] = sum(it["left"] for it in case["crashes"])
    return case


def _compare(stage: Stage, twin: Twin, folder: Path) -> dict[str, Any]:
    """What of a stage that has finished differs from its twin, and from MLflow's database."""
    found = stages.outputs(stage, folder)
    counts = database.count(folder) if stage.tracked else {"runs_lost": 0}
    lost = len(_runs(twin.outputs) - _runs(found))
    differing = {
        name: _differing(found.get(name, b""), twin.outputs.get(name, b""))
        for name in found.keys() | twin.outputs.keys()
    }
    return counts | {
        "runs_lost": counts["runs_lost"] + lost,
        "bytes_differing": sum(differing.values()),
        "left_over": len(stages.files(folder) - twin.files),
    }


def _amiss(stage: Stage, crash: dict[str, Any]) -> bool:
    """Whether a stage ended by itself with an error, or otherwise than it promises."""
    how, code = crash["how"], crash["code"]
    if how == "terminate" and crash["took"] > END_S:
        return True
    allowed = CODES if stage.words[0] == "train" else {"ended": {0}}
    return code not in allowed.get(how, {code})


def _torn(found: dict[str, bytes], twin: Twin) -> int:
    """Outputs in place that are neither whole nor absent."""
    return sum(
        data != twin.outputs.get(name) for name, data in found.items() if not name.endswith(".part")
    )


def _half_a_page(folder: Path) -> bool:
    """Whether the report, which tells the time and so differs from its twin, has no end."""
    page = folder / "reports/report.html"
    return page.exists() and not page.read_text().rstrip().endswith("</html>")


def _damage(folder: Path, draw: random.Random) -> list[str]:
    """In one case of three, damage a newest checkpoint, a finished run's record or a plan."""
    work = folder / ".smallbatch/work"
    chunks = {path.parent for path in work.glob("*.checkpoints/*/*/*.checkpoint")}
    targets = {
        "checkpoint": [max(chunk.glob("*.checkpoint")) for chunk in sorted(chunks)],
        "record": sorted(work.glob("*/record")),
        "plan": sorted(work.glob("*.checkpoints/*/plan")),
    }
    kinds = [kind for kind, paths in targets.items() if paths]
    if not kinds or draw.random() > 1 / 3:
        return []
    kind = draw.choice(kinds)
    target = draw.choice(targets[kind])
    data = bytearray(target.read_bytes())
    if draw.random() < 0.5:
        data = data[: draw.randrange(len(data))]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    target.write_bytes(data)
    return [kind]


def _differing(ours: bytes, theirs: bytes) -> int:
    if ours == theirs:
        return 0
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    return max(len(ours), len(theirs)) - same


def _runs(files: dict[str, bytes]) -> set[str]:
    records = [json.loads(data) for name, data in files.items() if name.endswith("runs.json")]
    return {run["run"] for record in records for run in record["runs"]}
