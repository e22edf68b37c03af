"""An advice on real images, and what the full columns say of it afterwards.

`python -m benchmarks.advise.live NAME --data DATA --budget 30m [--model M …] --work DIR`

First `smallbatch advise` itself, as a user calls it. Then whole trainings of every batch size at
every octave around what it found, with the seeds of its race and the same images. Both go on after
an interruption. The comparison is written to `results/advise`.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.advise.live_table import page
from benchmarks.code import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.pipeline.advise.trials import Trials

SEEDS = range(3)
BELOW, ABOVE = 3, 2
"""Octaves around what was found best or fastest at each batch size, as far as nothing breaks."""


@dataclass(frozen=True)
class Cell:
    """A cell of the full columns; accuracies are means over the seeds, 0..1.

    Attributes:
        batch_size: m.
        base_lr: η̃; under AdamW η.
        survived: How many of the seeds did not diverge.
        validation, test: Accuracies by seed; empty if one diverged.
    """

    batch_size: int
    base_lr: float
    survived: int
    validation: tuple[float, ...]
    test: tuple[float, ...]


def advise(work: Path, words: Sequence[str]) -> float:
    """Run the command in a folder; returns how long it took in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "smallbatch", "advise", *words], cwd=work, check=True)
    return time.perf_counter() - started


def full_columns(work: Path, words: Sequence[str], advice: dict[str, Any]) -> list[Cell]:
    """Train the full columns, and read them."""
    from smallbatch.cli.advise import advise as command
    from smallbatch.config.params import ComputeConfig
    from smallbatch.data.prepared import load_prepared
    from smallbatch.pipeline.advise.requests import of_options
    from smallbatch.pipeline.advise.size import VALIDATION
    from smallbatch.pipeline.single import prepared_for_itself

    with chdir(work):
        options = command.make_context("advise", list(words)).params
        options = {k: v for k, v in options.items() if k not in ("study", "as_json", "params_file")}
        request = of_options(Path("params.yaml"), options)
        taken, tests = advice["n_train"] + advice["n_validation"], advice["n_test"]
        config = request.dataset.model_copy(
            update={
                "subset": None if taken == advice["n_available"] else taken,
                "validation_fraction": VALIDATION,
            }
        )
        data = load_prepared(prepared_for_itself(config.model_copy(update={
            "test_subset": tests if _is_part(config, tests) else None}), print))  # fmt: skip
        study = request.study.model_copy(update={"epochs": advice["epochs"]})
        cells: list[Cell] = []
        for found in advice["ranges"]:
            m, rates = found["batch_size"], _rates(found, advice)
            print(f"m={m}: {len(rates)} learning rates × {len(SEEDS)} seeds", flush=True)
            trials = _train(study, data, m, rates, ComputeConfig(device=request.device))
            cells += [_cell(m, rate, trials) for rate in rates]
    return cells


def _is_part(config: Any, tests: int) -> bool:
    from smallbatch.data.sources import open_source

    return tests < len(open_source(config, Path("data")).test.labels)


def _rates(found: dict[str, Any], advice: dict[str, Any]) -> list[float]:
    """Octaves around the best of a batch size and below what broke, and all that were raced."""
    raced = [it["base_lr"] for it in advice["raced"] if it["batch_size"] == found["batch_size"]]
    best = round(math.log2(found["best"] or found["edge"] or found["lowest"]))
    octaves = [2.0**k for k in range(best - BELOW, best + ABOVE + 1)]
    top = found["breaks"] or math.inf
    return sorted({*raced, *(rate for rate in octaves if rate < top)})


def _train(study: Any, data: Any, m: int, rates: Sequence[float], compute: Any) -> Trials:
    from smallbatch.execution.column import train_column
    from smallbatch.pipeline.advise.trials import FOLDER, read_trials
    from smallbatch.placement.placement import place
    from smallbatch.protocol.column import plan_column

    column = plan_column("full", study, data, batch_size=m, base_lrs=rates, seeds=list(SEEDS))
    directory = FOLDER / data.meta.name / "full" / f"m{m}"
    train_column(
        column, directory, placement=place(column, compute), checkpoint_seconds=60,
        work=FOLDER / "runs", keep_weights=False,
    )  # fmt: skip
    return read_trials(directory)


def _cell(m: int, rate: float, trials: Trials) -> Cell:
    found = [trial for _, trial in sorted(trials[rate].items())]
    survived = sum(trial.finished for trial in found)
    if survived < len(found):
        return Cell(m, rate, survived, (), ())
    return Cell(
        m, rate, survived,
        tuple(float(it.validation or 0) for it in found),
        tuple(float(it.test or 0) for it in found),
    )  # fmt: skip


def compare(advice: dict[str, Any], cells: Sequence[Cell], seconds: float) -> dict[str, Any]:
    """What the full columns say of an advice.

    The grid's choice is that of the highest mean validation accuracy, as the race's; both are
    judged on the test images, with the seeds of the race. The error of the regret is that of the
    paired differences by seed; what the size of the test set leaves open comes on top.
    """
    told = advice["recommended"]
    usable = [cell for cell in cells if cell.validation]
    chosen = max(usable, key=lambda cell: np.mean(cell.validation))
    best = max(usable, key=lambda cell: np.mean(cell.test))
    mine = next(
        it for it in usable
        if (it.batch_size, it.base_lr) == (told["batch_size"], told["base_lr"])
    )  # fmt: skip
    d = np.subtract(chosen.test, mine.test)
    p = np.array([np.mean(chosen.test), np.mean(mine.test)])
    ranked = sorted(usable, key=lambda cell: -float(np.mean(cell.test)))
    same = chosen == mine
    return {
        "advised": _short(mine),
        "grid": _short(chosen),
        "best_on_test": _short(best),
        "regret": float(d.mean()),
        "regret_seeds": 0.0 if same else float(d.std(ddof=1) / math.sqrt(len(d))),
        "regret_images": 0.0 if same else float(np.sqrt((p * (1 - p)).sum() / advice["n_test"])),
        "deviation": float(np.std(mine.test, ddof=1)),
        "random_regret": float(np.mean(chosen.test) - np.mean([np.mean(it.test) for it in usable])),
        "place": ranked.index(mine) + 1,
        "of": len(cells),
        "tied_hold": _tied(advice, chosen),
        "edges_known": sum(it["breaks"] is not None for it in advice["ranges"]),
        "broke_below_the_edge": [
            _short(cell) for cell in cells
            if cell.survived < len(SEEDS)
            and cell.base_lr <= (_edge(advice, cell.batch_size) or 0)
        ],
        "advice_images": advice["images"],
        "grid_images": sum(advice["n_train"] * advice["epochs"] * len(SEEDS) for _ in cells),
        "advice_seconds": advice["seconds"],
        "command_seconds": seconds,
        "cells": [vars(cell) for cell in cells],
    }  # fmt: skip


def _tied(advice: dict[str, Any], chosen: Cell) -> bool:
    """Whether the grid's choice is among those that the advice calls tied."""
    tied = {(it["batch_size"], it["base_lr"]) for it in advice["raced"] if it["tied"]}
    return (chosen.batch_size, chosen.base_lr) in tied


def _edge(advice: dict[str, Any], m: int) -> float | None:
    return next(it["edge"] for it in advice["ranges"] if it["batch_size"] == m)


def _short(cell: Cell) -> dict[str, Any]:
    return {
        "batch_size": cell.batch_size,
        "base_lr": cell.base_lr,
        "survived": cell.survived,
        "validation": float(np.mean(cell.validation)) if cell.validation else None,
        "test": float(np.mean(cell.test)) if cell.test else None,
    }


def _command(words: Sequence[str]) -> str:
    """As it was typed, but for the folder in which the images' folder lies."""
    shown = [Path(word).name if before == "--data" else word
             for before, word in zip(["", *words], words, strict=False)]  # fmt: skip
    return " ".join(["smallbatch", "advise", *shown])


def main() -> None:
    """Advise, train the full columns, write the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "advise")
    parser.add_argument("--no-columns", action="store_true", help="Advise only.")
    given, words = parser.parse_known_args()
    given.work.mkdir(parents=True, exist_ok=True)
    timing = given.work / "seconds.json"
    if not timing.exists():
        timing.write_text(json.dumps(advise(given.work, words)))
    if given.no_columns:
        return
    advice = json.loads((given.work / "reports/advice.json").read_text())
    cells = full_columns(given.work, words, advice)
    found = compare(advice, cells, json.loads(timing.read_text()))
    folder = given.out / given.name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("advice.json", "advice.html"):
        (folder / name).write_bytes((given.work / "reports" / name).read_bytes())
    (folder / "full.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(page(given.name, _command(words), advice, found))
    print(folder)


if __name__ == "__main__":
    main()
