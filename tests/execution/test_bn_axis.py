"""Columns whose runs differ in their BN batch size, and in their number of epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.cells import summarise_cells
from smallbatch.analysis.frames import load_results
from smallbatch.analysis.ghost import bn_cells
from smallbatch.analysis.mixed import mixed_results
from smallbatch.config.params import ComputeConfig
from smallbatch.config.study import StudyConfig
from smallbatch.data.prepared import Dataset
from smallbatch.errors import UserError
from smallbatch.pipeline.experiments import best_base_lr
from smallbatch.protocol.column import plan_column
from smallbatch.protocol.run import Run
from smallbatch.records.files import recorded_settings
from tests.columns import place_and_train

PLAIN = StudyConfig(model="resnet8", epochs=1, weight_decay=0.0)
GHOST = StudyConfig(
    model="resnet8", norm="ghost", bn_batch_sizes=(2, 4, 8), epochs=1, weight_decay=0.0
)


def train(data: Dataset, study: StudyConfig, out: Path, m: int, engine: Any = "loop") -> Path:
    column = plan_column("study", study, data, batch_size=m, base_lrs=[2**-8], seeds=[0, 1])
    compute = ComputeConfig(device="cpu", workers=2, engine=engine)
    place_and_train(column, out / f"m{m}", compute=compute, work=out / "work")
    return out / f"m{m}"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_every_bn_batch_is_a_run_with_the_numbers_of_a_study_of_its_own(
    noise: Dataset, tmp_path: Path, engine: str
) -> None:
    column = train(noise, GHOST, tmp_path / "axis", 4, engine)
    record = json.loads((column / "runs.json").read_text())
    assert [(run["bn_batch_size"], run["seed"]) for run in record["runs"]] == [
        (2, 0), (2, 1), (4, 0), (4, 1)
    ]  # fmt: skip
    assert record["settings"]["bn_batch_sizes"] == [2, 4, 8]
    assert record["settings"]["bn_batch_size"] is None
    alone = GHOST.model_copy(update={"bn_batch_sizes": None, "bn_batch_size": 2})
    other = json.loads((train(noise, alone, tmp_path / "one", 4, engine) / "runs.json").read_text())
    # The same identity and, to the bit, the same result: a BN batch is no stranger to its column.
    assert record["runs"][:2] == other["runs"]

    results = load_results(tmp_path / "axis/m4")
    assert mixed_results(results.runs, summarise_cells(results.runs)) == []
    cells = bn_cells(results.runs)
    assert cells[["batch_size", "bn_batch_size", "n_seeds"]].to_numpy().tolist() == [
        [4, 2, 2], [4, 4, 2]
    ]  # fmt: skip


def test_a_bn_batch_must_fit_the_batch(noise: Dataset) -> None:
    study = GHOST.model_copy(update={"bn_batch_sizes": (8,)})
    with pytest.raises(UserError, match=r"studies\.study\.bn_batch_sizes: found none up to .* 4"):
        plan_column("study", study, noise, batch_size=4, base_lrs=[0.1], seeds=[0])


def test_axes_do_not_enter_the_identity_but_what_they_chose_does() -> None:
    run = Run(GHOST.at(8)[1], "data", 8, 0.1, 0)
    fixed = GHOST.model_copy(update={"bn_batch_sizes": None, "bn_batch_size": 4})
    assert run.hash == Run(fixed, "data", 8, 0.1, 0).hash
    assert run.hash != Run(GHOST.at(8)[0], "data", 8, 0.1, 0).hash
    budget = StudyConfig(model="resnet8", epochs=8, weight_decay=0.0, budget="updates of 8")
    twice = StudyConfig(model="resnet8", epochs=16, weight_decay=0.0)
    assert Run(budget.at(16)[0], "data", 16, 0.1, 0).hash == Run(twice, "data", 16, 0.1, 0).hash


def column_of(folder: Path, accuracies: dict[tuple[float, int], float | None]) -> Path:
    """Result files of one column with made-up accuracies by (η̃, seed); None: diverged."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for (base_lr, seed), value in accuracies.items():
        name, outcome = f"{base_lr}-{seed}", "diverged" if value is None else "finished"
        loss = dict.fromkeys(["train_loss", "validation_loss", "test_loss"], 1.0)
        accuracy = dict.fromkeys(["train_accuracy", "validation_accuracy", "test_accuracy"], value)
        rows.append({"run": name, "study": "s", "batch_size": 4, "base_lr": base_lr, "seed": seed,
                     "epoch": 1, "updates": 5 if value else 3, "lr": 4 * base_lr,
                     "outcome": outcome, **loss, **accuracy})  # fmt: skip
        runs.append({"run": name, "base_lr": base_lr, "lr": 4 * base_lr, "seed": seed,
                     "outcome": outcome, "diverged_at": None if value else 3, "updates": 5,
                     "parameters": 7, "final": {}})  # fmt: skip
    frame = pd.DataFrame(rows).astype({"test_accuracy": float, "validation_accuracy": float})
    frame.to_parquet(folder / "history.parquet", index=False)
    meta = {"name": "d", "source": "digits", "classes": ["a", "b"], "channels": 1, "height": 8,
            "width": 8, "mean": [0.0], "std": [1.0], "fingerprint": "f",
            "counts": {"train": 20, "validation": 0, "test": 9}}  # fmt: skip
    record = {"protocol": 1, "dataset": meta, "study": "s", "batch_size": 4, "runs": runs,
              "settings": recorded_settings(Run(PLAIN, "f", 4, 0.1, 0))}  # fmt: skip
    (folder / "runs.json").write_text(json.dumps(record))
    return folder


def test_the_best_base_lr_has_the_highest_median_diverged_seeds_last(tmp_path: Path) -> None:
    values: dict[tuple[float, int], float | None] = {
        (0.1, 0): 0.6, (0.1, 1): 0.6, (0.1, 2): 0.6,
        (0.2, 0): 0.9, (0.2, 1): None, (0.2, 2): None,
        (0.4, 0): 0.7, (0.4, 1): 0.7, (0.4, 2): None,
        (0.8, 0): 0.7, (0.8, 1): 0.7, (0.8, 2): 0.2,
    }  # fmt: skip
    # Medians 0.6, diverged, 0.7, 0.7: of equals the smaller.
    assert best_base_lr(column_of(tmp_path / "m4", values)) == 0.4


def test_without_a_finished_cell_there_is_no_best_base_lr(tmp_path: Path) -> None:
    column = column_of(tmp_path / "m4", {(0.1, 0): None})
    with pytest.raises(UserError, match="every learning rate diverged, so none is the best"):
        best_base_lr(column)
    with pytest.raises(UserError, match="no such directory"):
        best_base_lr(tmp_path / "m8")
