"""One case: a stage crashed at random moments, files damaged, and then run to its end."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.faults import processes, stages
from benchmarks.faults.stages import Stage, Twin


def run_case(stage: Stage, twin: Twin, folder: Path, draw: random.Random) -> dict[str, Any]:
    """Crash a stage one to three times, let it finish, and compare it with its twin."""
    shutil.copytree(twin.prepared, folder)
    case: dict[str, Any] = {"stage": stage.name, "crashes": [], "damaged": 0, "torn": 0}
    for _ in range(draw.randint(1, 3)):
        how = draw.choices(processes.CRASHES, weights=(6, 2, 1, 2))[0]
        pid = processes.start(folder, stages.command(stage.words, stage.tracked))
        delay = draw.uniform(0, 0.9 * twin.seconds)
        code, took, left = processes.crash(pid, how, delay, draw)
        case["crashes"].append(
            {"how": how, "after": delay, "code": code, "took": took, "left": left}
            | {"unsaved": _unsaved(folder)}
        )
        case["torn"] += _torn(stages.outputs(stage, folder), twin)
        if code == 0:
            break
        case["damaged"] += _damage(folder, draw)
    try:
        stages.run(folder, stage.words, stage.tracked)
    except RuntimeError as error:
        return case | {"failed": str(error)}
    found = stages.outputs(stage, folder)
    case["bytes_differing"] = sum(
        _differing(found.get(name, b""), twin.outputs.get(name, b""))
        for name in found.keys() | twin.outputs.keys()
    )
    case["runs_lost"] = len(_runs(twin.outputs) - _runs(found))
    case["left_over"] = sum(1 for name in found if name.endswith(".part"))
    if stage.tracked:
        time.sleep(0.1)
        counts = stages.points(folder)
        case["runs_lost"] += counts.pop("runs_lost")
        case |= counts
    return case


def _torn(found: dict[str, bytes], twin: Twin) -> int:
    """Outputs in place that are neither whole nor absent."""
    return sum(
        data != twin.outputs.get(name) for name, data in found.items() if not name.endswith(".part")
    )


def _unsaved(folder: Path) -> float | None:
    """Seconds since the last checkpoint of the chunk whose last checkpoint is the oldest."""
    newest: dict[Path, float] = {}
    for path in folder.glob(".smallbatch/work/*.checkpoints/*/*/*.checkpoint"):
        newest[path.parent] = max(newest.get(path.parent, 0.0), path.stat().st_mtime)
    return time.time() - min(newest.values()) if newest else None


def _damage(folder: Path, draw: random.Random) -> int:
    """In one case of four, damage the newest checkpoint of a chunk, or a finished run's record."""
    files = [*folder.glob(".smallbatch/work/*.checkpoints/*/*"), *folder.glob(".smallbatch/work/*")]
    targets = [
        max(files)
        for chunk in files
        if (files := list(chunk.glob("*.checkpoint")) or list(chunk.glob("record")))
    ]
    if not targets or draw.random() > 0.25:
        return 0
    target = draw.choice(sorted(targets))
    data = bytearray(target.read_bytes())
    if draw.random() < 0.5:
        data = data[: draw.randrange(len(data))]
    else:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    target.write_bytes(data)
    return 1


def _differing(ours: bytes, theirs: bytes) -> int:
    if ours == theirs:
        return 0
    same = sum(a == b for a, b in zip(ours, theirs, strict=False))
    return max(len(ours), len(theirs)) - same


def _runs(files: dict[str, bytes]) -> set[str]:
    records = [json.loads(data) for name, data in files.items() if name.endswith("runs.json")]
    return {run["run"] for record in records for run in record["runs"]}
