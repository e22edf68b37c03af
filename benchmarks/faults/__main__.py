"""The fault campaign; see docs/reliability.md.

    python -m benchmarks.faults                            # all of it, into results/faults
    python -m benchmarks.faults --short --out /tmp/faults  # under two minutes

It can be interrupted, or run in pieces: cases that this code has done, listed in OUT/cases.jsonl,
are not run again. Those of other code are dropped.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import code
from benchmarks.faults import kills, servers, stages, table
from benchmarks.faults.outages import OUTAGES, run_outage
from benchmarks.faults.stages import Stage, Twin
from benchmarks.faults.together import TOGETHER, run_together

CASES = {"train stacked, with MLflow": 6, "train": 34, "": 8}
"""Cases of each stage, by the beginning of its name; a case crashes it once to three times."""
ROUNDS = 3
"""Trainings under each outage; every round has each of them once, so that they interleave."""
SHORT = {
    "train loop train plain 8",
    "train stacked, with MLflow train bn 8",
    "evaluate evaluate",
    "sync sync",
    "server killed",
    "four columns to PostgreSQL",
}
"""What the short version has one case of, each of another kind; it leaves out the rest."""
UNFINISHED = 3
"""Exit status where cases are left to run."""


@dataclass(frozen=True)
class Case:
    """What is left to run: its name in `cases.jsonl`, and how, in a folder."""

    name: str
    run: Callable[[Path], dict[str, Any]]


def main() -> int:
    """Run what is missing and write the table; exit status 1 where anything was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="a few cases of the main stages")
    parser.add_argument("--only", default="", help="cases whose stages begin with this")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="begin no case after so long"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    log, digest = out / "cases.jsonl", code.digest("faults")
    lines = log.read_text().splitlines() if log.exists() else []
    ours = {"code": digest, "seed": arguments.seed}
    done = [case for case in map(json.loads, lines) if ours.items() <= case.items()]
    log.write_text("".join(json.dumps(case) + "\n" for case in done))
    _import_all()
    deadline, left = time.monotonic() + arguments.seconds, False
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch, log.open("a") as file:
        for wanted in _cases(arguments, {case["id"] for case in done}, Path(scratch)):
            left = time.monotonic() > deadline
            if left:
                break
            case = _run(wanted, Path(scratch) / "case") | ours
            file.write(json.dumps(case) + "\n")
            file.flush()
            done.append(case)
            print(json.dumps({k: v for k, v in case.items() if k != "crashes"}), flush=True)
    if left:
        print(f"{len(done)} cases are done; the same command goes on")
        return UNFINISHED
    return table.write(out, done, arguments)


def _run(case: Case, folder: Path) -> dict[str, Any]:
    when, started = datetime.now(UTC), time.monotonic()
    folder.mkdir()
    try:
        found = case.run(folder)
    finally:
        shutil.rmtree(folder)
    seconds = round(time.monotonic() - started, 1)
    return {"id": case.name, **found, "date": when.isoformat(timespec="seconds"), "took": seconds}


def _cases(arguments: argparse.Namespace, done: set[str], scratch: Path) -> Iterator[Case]:
    for number, stage in enumerate(stages.STAGES):
        label = f"{stage.name} {' '.join(stage.words)}"
        ids = [f"{number} {label} {i}" for i in range(_wanted(label, arguments, CASES))]
        missing = [name for name in ids if name not in done]
        if missing:
            twin = stages.make_twin(stage, scratch)
            for name in missing:
                yield Case(name, _crashed(stage, twin, f"{arguments.seed} {name}"))
    for i in range(ROUNDS):
        for name in OUTAGES:
            wanted = _wanted(name, arguments, {"": ROUNDS})
            if i < wanted and f"{name} {i}" not in done:
                yield Case(f"{name} {i}", lambda folder, name=name: run_outage(name, folder))
    for name in TOGETHER:
        few = name.startswith("four")  # the full campaign has ten in its place
        if _wanted(name, arguments, {"": 0 if few else 1}) and name not in done:
            yield Case(name, lambda folder, name=name: run_together(name, folder))


def _crashed(stage: Stage, twin: Twin, seed: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: kills.run_case(stage, twin, folder, random.Random(seed))


def _wanted(name: str, arguments: argparse.Namespace, full: dict[str, int]) -> int:
    if not name.startswith(arguments.only):
        return 0
    if arguments.short:
        possible = "PostgreSQL" not in name or servers.why_no_postgres() is None
        return int(possible and name in SHORT)
    return next(count for start, count in full.items() if name.startswith(start))


def _import_all() -> None:
    """Import once what the forks need."""
    import torch

    torch.set_num_threads(1)  # no pool of threads may exist when it forks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("mlflow.tracking", "sklearn.datasets", "smallbatch.analysis.evaluation",
                     "smallbatch.pipeline.experiments", "smallbatch.report.page",
                     "smallbatch.execution.workers"):  # fmt: skip
            importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
