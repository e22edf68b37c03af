"""The replay of races: its committed page is of this code, and agrees with the results' tables."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from benchmarks.advise.table import met
from benchmarks.code import ROOT

if TYPE_CHECKING:
    from pathlib import Path

COMMITTED = ROOT / "results/advise"
COMMAND = [sys.executable, "-m", "benchmarks.advise"]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return json.loads((COMMITTED / "replay.json").read_text())


@pytest.mark.slow
def test_the_committed_page_is_what_the_code_writes(tmp_path: Path) -> None:
    subprocess.run([*COMMAND, "--out", str(tmp_path)], cwd=ROOT, check=True)
    for path in tmp_path.iterdir():
        assert path.read_text() == (COMMITTED / path.name).read_text(), path.name
    assert {it.name for it in tmp_path.iterdir()} == {"replay.json", "replay.md"}


def test_choices_and_costs_of_the_grid_agree_with_the_tables(summary: dict[str, Any]) -> None:
    """The table of runs was written by `smallbatch evaluate`, from the same columns."""
    runs = pd.read_csv(ROOT / "results/paper-cifar10-small/evaluation/runs.csv")
    assert sum(it["counts"] for it in summary["studies"]) == 9
    for it in summary["studies"]:
        own = runs[runs["study"] == it["study"]]
        updates = own["diverged_at"].fillna(own["updates"])
        assert it["grid_images"] == (updates * own["batch_size"]).sum()
        cells = own.groupby(["batch_size", "base_lr"])
        whole = cells["outcome"].agg(lambda outcomes: (outcomes == "finished").all())
        validation = cells["reported_validation_accuracy"].mean()[whole]
        test = cells["reported_accuracy"].mean()[whole]
        assert list(validation.round(9).idxmax()) == it["grid"]
        assert it["best_accuracy"] == pytest.approx(test.max())
        assert it["regret"] == pytest.approx(
            test[tuple(it["grid"])] - test[tuple(it["raced"])], abs=1e-8
        )
        assert it["candidates"][0] == len(cells)
        assert it["edge_images"] <= it["images"] <= it["grid_images"] <= it["planned_images"]


def test_the_first_rung_agrees_with_the_columns_files(summary: dict[str, Any]) -> None:
    """How many of one study had diverged within the first epoch."""
    folder = ROOT / "results/paper-cifar10-small/models/cifar10-small/alexnet"
    history = pd.concat(pd.read_parquet(path) for path in folder.glob("*/history.parquet"))
    first = history[history["epoch"] == 1]
    gone = first["validation_accuracy"].isna().groupby([first["batch_size"], first["base_lr"]])
    (own,) = (it for it in summary["studies"] if it["study"] == "alexnet")
    assert own["diverged"][0] == gone.any().sum() > 0


def test_the_page_says_whether_the_bar_is_met(summary: dict[str, Any]) -> None:
    bar = [it for it in summary["studies"] if it["counts"]]
    regret = [it["regret"] <= it["deviation"] for it in bar]
    images = [it["images"] <= 0.2 * it["grid_images"] for it in bar]
    both = sum(a and b for a, b in zip(regret, images, strict=True))
    assert summary["met"] == {"regret": sum(regret), "images": sum(images), "both": both}
    page = " ".join((COMMITTED / "replay.md").read_text().split())
    assert f"**The race {'meets' if both >= 8 else 'misses'} it**" in page
    assert f"in {both} of 9, the regret in {sum(regret)}, the images in {sum(images)}." in page
    assert met([]) == (0, 0, 0)


def test_a_folder_that_is_not_there_is_one_line() -> None:
    ran = subprocess.run(
        [*COMMAND, "--results", "nowhere"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].endswith("--results: nowhere is no folder")
