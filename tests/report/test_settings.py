"""What was run, said of all runs of a study and not of the first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.cells import summarise_cells
from smallbatch.analysis.evaluation import evaluate
from smallbatch.analysis.frames import load_results
from smallbatch.analysis.mixed import mixed_results
from smallbatch.report.answer import answer_card
from smallbatch.report.images import read_images, with_images
from smallbatch.report.page import build_report
from smallbatch.report.settings import reported_rule, setting, settings_table
from tests.analysis import synthetic
from tests.analysis.accuracies import PLAIN_SGD

RUN: dict[str, Any] = {
    "dataset": "d", "study": "a", "classes": 10, "scale": None, "n_train": 1000,
    "n_validation": 0, "n_test": 200, "model": "resnet8", "parameters": 75290, "norm": "none",
    "bn_batch_size": None, "bn_batch_sizes": None, "base_lr_from": None, "augment": False,
    "budget": "epochs", "epochs": 10, "updates": 1250, "weight_decay": 1e-4,
    "milestones": "[0.5, 0.75]", "lr_decay": 0.1, "warmup": 0.0, "precision": "float32",
    "base_lr": 0.25, "seed": 0, "outcome": "finished", "batch_size": 8, "height": 64, "width": 64,
    **PLAIN_SGD,
}  # fmt: skip


def said(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The table for one run of m = 8 and further ones, each with what differs."""
    runs = pd.DataFrame([RUN | row for row in [{}, *rows]])
    runs["parameters"] = runs["parameters"].astype("Int64")
    return {row[0]: row[1] for row in settings_table(runs).rows}


def test_runs_of_equal_settings_have_them_once() -> None:
    assert said([{"batch_size": 16, "base_lr": 0.3}]) == {
        "Data": "d, 10 classes",
        "Examples": "1000 training and 200 test",
        "Model": "resnet8, 75,290 parameters",
        "Normalisation": "none",
        "Augmentation": "none",
        "Budget": "10 epochs for every run",
        "Reported accuracy": "after the last of 10 epochs",
        "Optimiser": "plain SGD, weight decay 0.0001, η × 0.1 at 50 % and 75 % of the updates",
        "Precision": "float32",
        "Batch sizes": "8, 16",
        "Base learning rates": "2⁻², 0.3; not each at every m",
        "Seeds per cell": "1",
        "Runs (diverged)": "2 (0)",
    }


@pytest.mark.parametrize(
    ("item", "changed", "text"),
    [
        ("Data", {"classes": 5}, "differs: d, 10 classes (m = 8); d, 5 classes (m = 16)"),
        ("Data", {"scale": "1/4"},
         "differs: d, 10 classes (m = 8); d, 10 classes, scale 1/4 (m = 16)"),
        ("Examples", {"n_test": 100},
         "differs: 1000 training and 200 test (m = 8); 1000 training and 100 test (m = 16)"),
        ("Model", {"model": "vgg"},
         "differs: resnet8, 75,290 parameters (m = 8); vgg, 75,290 parameters (m = 16)"),
        ("Model", {"parameters": None},
         "differs: resnet8, 75,290 parameters (m = 8); resnet8 (m = 16)"),
        ("Normalisation", {"norm": "ghost", "bn_batch_size": 4.0},
         "differs: none (m = 8); ghost batch norm over 4 examples (m = 16)"),
        ("Augmentation", {"augment": True},
         "differs: none (m = 8); random crop, random flip (m = 16)"),
        ("Budget", {"epochs": 7}, "differs: 7 to 10 epochs"),
        ("Budget", {"budget": "updates of 8", "epochs": 20},
         "differs: equal epochs and equal updates (10 to 20 epochs, 1250 updates)"),
        ("Precision", {"precision": "bf16"}, "differs: float32 (m = 8); bf16 (m = 16)"),
        ("Optimiser", {"milestones": "[]"},
         ("differs: plain SGD, weight decay 0.0001, η × 0.1 at 50 % and 75 % of the updates "
         "(m = 8); plain SGD, weight decay 0.0001, constant η (m = 16)")),
        ("Optimiser", {"warmup": 0.05},
         ("differs: plain SGD, weight decay 0.0001, η × 0.1 at 50 % and 75 % of the updates "
         "(m = 8); plain SGD, weight decay 0.0001, η × 0.1 at 50 % and 75 % of the updates, "
         "warm-up over the first 5 % (m = 16)")),
    ],
)  # fmt: skip
def test_a_setting_in_which_columns_differ_is_not_the_first_ones_for_all(
    item: str, changed: dict[str, Any], text: str
) -> None:
    assert said([{"batch_size": 16} | changed])[item] == text


def test_several_batch_sizes_of_one_setting_are_named_together() -> None:
    rows = [{"batch_size": m, "precision": "bf16"} for m in (32, 2)]
    assert said(rows)["Precision"] == "differs: bf16 (m = 2, 32); float32 (m = 8)"


def test_equal_updates_are_so_many_for_all_and_their_epochs_differ() -> None:
    budget = {"budget": "updates of 8"}
    found = said([budget | {"batch_size": 16, "epochs": 20}])
    assert found["Budget"].startswith("differs: equal epochs and equal updates")
    runs = pd.DataFrame([RUN | budget, RUN | budget | {"batch_size": 16, "epochs": 20}])
    (row,) = [row for row in settings_table(runs).rows if row[0] == "Budget"]
    assert row[1] == "1250 updates for every run (10 to 20 epochs)"
    (row,) = [row for row in settings_table(runs[:1]).rows if row[0] == "Budget"]
    assert row[1] == "1250 updates for every run (10 epochs)"


def test_the_bn_batch_sizes_of_a_study_are_its_grid_and_no_difference() -> None:
    ghost = {"norm": "ghost", "bn_batch_sizes": "[2, 4]"}
    cells = [(m, b, s) for m, b in ((8, 2), (8, 4), (16, 4)) for s in range(3)]
    runs = pd.DataFrame(
        [RUN | ghost | {"batch_size": m, "bn_batch_size": float(b), "seed": s} for m, b, s in cells]
    )
    table = {row[0]: row[1] for row in settings_table(runs).rows}
    assert table["Normalisation"] == "ghost batch norm over 2, 4 examples"
    assert table["Seeds per cell"] == "3"


def test_cells_of_unequal_seeds_and_diverged_runs_are_counted() -> None:
    found = said([{"seed": 1, "outcome": "diverged"}, {"batch_size": 16}])
    assert found["Seeds per cell"] == "1 to 2"
    assert found["Runs (diverged)"] == "3 (1)"


def test_studies_of_unequal_seeds_each_say_their_own(tmp_path: Path) -> None:
    numbers = {"few": 2, "more": 5}
    studies = tuple(synthetic.Study(name, batch_sizes=(2, 8), seeds=n, settings={"norm": "batch"})
                    for name, n in numbers.items())  # fmt: skip
    runs = load_results(synthetic.write_models(tmp_path, studies)).runs
    assert mixed_results(runs, summarise_cells(runs)) == []
    for name, n in numbers.items():
        own = runs[runs["study"] == name]
        assert {row[0]: row[1] for row in settings_table(own).rows}["Seeds per cell"] == str(n)
        found = answer_card(own)
        assert f"median of {n} seeds, " in found.lines[0]
        assert (found.main == "Two seeds decide nothing: set `seeds: 3` or more.") == (n == 2)


def test_without_counts_of_images_the_table_says_so() -> None:
    frame = pd.DataFrame([RUN | dict.fromkeys(("n_train", "n_validation", "n_test"))])
    (row,) = [row for row in settings_table(frame).rows if row[0] == "Examples"]
    assert row[1] == "not recorded"


@pytest.mark.parametrize(
    ("own", "data"),
    [
        ({}, "d, 10 classes, crops of 64×64 of images kept with a short side of up to 73"),
        ({"crop_ratio": 0.95},
         ("d, 10 classes, crops of 64×64 of images kept with a short side of up to 73, as timm "
         "states them for the model (crop ratio 0.95)")),
    ],
)  # fmt: skip
def test_of_encoded_images_the_table_says_what_a_model_sees(own: dict[str, Any], data: str) -> None:
    rows = {"short_side": 73.0, "augment": True, **own}
    found = {row[0]: row[1] for row in settings_table(pd.DataFrame([RUN | rows])).rows}
    assert found["Data"] == data
    assert found["Augmentation"] == "random crop of 8 to 100 % of the area, random flip"
    rows["augment"] = False
    found = {row[0]: row[1] for row in settings_table(pd.DataFrame([RUN | rows])).rows}
    assert found["Augmentation"] == "none"


def test_what_became_of_images_and_batches_is_read_from_the_columns(tmp_path: Path) -> None:
    """The page says it, and neither the tables nor the digest of the runs know of it."""
    study = synthetic.Study("plain", batch_sizes=(2, 8), base_lrs=(2.0**-8, 2.0**-7))
    models = synthetic.write_models(tmp_path / "models", (study,))
    for m in (2, 8):
        file = models / f"synthetic/plain/m{m}/runs.json"
        record = json.loads(file.read_text())
        record["dataset"] |= {"height": 64, "width": 64, "short_side": 73}
        file.write_text(json.dumps(record))
    timing = models / "synthetic/plain/m8/timing.json"
    content = json.loads(timing.read_text())
    content["column"]["micro_batch"] = 4
    timing.write_text(json.dumps(content))
    runs = load_results(models).runs
    assert not {"short_side", "crop_ratio", "micro_batch"} & set(runs)
    found = {row[0]: row[1] for row in settings_table(with_images(runs, read_images(models))).rows}
    assert found["Data"].endswith("crops of 64×64 of images kept with a short side of up to 73")
    assert found["Batches computed"] == "whole (m = 2); in parts of 4 examples (m = 8)"
    evaluate(models, tmp_path / "evaluation")
    page = build_report(tmp_path / "evaluation", models, tmp_path / "reports").read_text()
    assert "short side of up to 73" in page
    assert "in parts of 4 examples" in page


@pytest.mark.parametrize(
    ("epochs", "text"),
    [
        ({8: 1}, "after the only epoch"),
        ({8: 15}, "after the last of 15 epochs"),
        ({8: 16}, "median of the last 2 of 16 epochs"),
        ({8: 82, 16: 82}, "median of the last 5 of 82 epochs"),
        ({8: 2, 16: 4, 64: 16, 128: 16},
         ("after the last of 2 epochs (m = 8); after the last of 4 epochs (m = 16); "
         "median of the last 2 of 16 epochs (m = 64, 128)")),
    ],
)  # fmt: skip
def test_the_reported_accuracy_says_over_which_epochs_it_is(
    epochs: dict[int, int], text: str
) -> None:
    runs = pd.DataFrame([{"batch_size": m, "epochs": n} for m, n in epochs.items()])
    assert reported_rule(runs) == text


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "resnet8, no norm, 10 epochs"),
        ({"norm": "batch", "epochs": 1}, "resnet8, batch norm, 1 epoch"),
        (
            {"norm": "ghost", "bn_batch_size": 4},
            "resnet8, ghost batch norm over 4 examples, 10 epochs",
        ),
    ],
)
def test_a_study_in_a_line(changed: dict[str, Any], line: str) -> None:
    assert setting(pd.DataFrame([RUN | changed] * 2)) == line
