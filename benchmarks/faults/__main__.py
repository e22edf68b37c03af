"""The fault campaign; see docs/reliability.md.

    python -m benchmarks.faults                            # all of it, into results/faults
    python -m benchmarks.faults --short --out /tmp/faults  # a minute or two

It can be interrupted: cases that are done, listed in OUT/cases.jsonl, are not run again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults import kills, stages, table
from benchmarks.faults.outages import OUTAGES, run_outage

CASES = {"train stacked, with MLflow": 6, "train": 25, "": 8}
"""Cases of each stage, by the beginning of its name; a case crashes it once to three times."""
SHORT = {"train loop": 1, "train stacked": 1, "evaluate": 1, "server absent": 1}
"""The same for the short version, which leaves out the rest."""


def main() -> int:
    """Run what is missing and write the table; exit status 1 where anything was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="a few cases of the main stages")
    parser.add_argument("--only", default="", help="stages whose names begin with this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/faults"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    log = out / "cases.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    _import_all()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch, log.open("a") as file:
        for case in _cases(arguments, {case["id"] for case in done}, Path(scratch)):
            file.write(json.dumps(case) + "\n")
            file.flush()
            done.append(case)
            print(json.dumps({k: v for k, v in case.items() if k != "crashes"}), flush=True)
    return table.write(out, done, arguments)


def _cases(
    arguments: argparse.Namespace, done: set[str], scratch: Path
) -> Iterator[dict[str, Any]]:
    for number, stage in enumerate(stages.STAGES):
        wanted = _wanted(stage.name, arguments, CASES)
        ids = [f"{number} {stage.name} {' '.join(stage.words)} {i}" for i in range(wanted)]
        missing = [name for name in ids if name not in done]
        if not missing:
            continue
        twin = stages.make_twin(stage, scratch / f"twin-{number}")
        for name in missing:
            folder = scratch / "case"
            draw = random.Random(f"{arguments.seed} {name}")
            yield {"id": name, **kills.run_case(stage, twin, folder, draw)}
            shutil.rmtree(folder)
    for name in OUTAGES:
        if _wanted(name, arguments, {"": 1}) and f"outage {name}" not in done:
            folder = scratch / "outage"
            folder.mkdir()
            yield {"id": f"outage {name}", **run_outage(name, folder)}
            shutil.rmtree(folder)


def _wanted(name: str, arguments: argparse.Namespace, full: dict[str, int]) -> int:
    if not name.startswith(arguments.only):
        return 0
    if arguments.short:
        return SHORT.get(name, 0)
    return next(count for start, count in full.items() if name.startswith(start))


def _import_all() -> None:
    """Import once what the forks need."""
    import matplotlib as mpl
    import torch

    torch.set_num_threads(1)  # no pool of threads may exist when it forks
    mpl.use("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("mlflow.tracking", "sklearn.datasets", "smallbatch.analysis.evaluation",
                     "smallbatch.experiments", "smallbatch.report.page",
                     "smallbatch.training.workers"):  # fmt: skip
            importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
