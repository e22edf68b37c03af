"""The comparison of a live advice with full columns, and the table of budgets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.advise import budgets
from benchmarks.advise.live import Cell, _command, compare
from benchmarks.advise.live_table import page

from tests.report.made_up_advice import made_up

BEST, ADVISED, BROKEN = 2.0**-5, 2.0**-6, 2.0**-4


def told(**changes: Any) -> dict[str, Any]:
    found = asdict(made_up())
    found["recommended"] |= {"batch_size": 4, "base_lr": ADVISED}
    found["raced"] = [{"batch_size": 4, "base_lr": ADVISED, "tied": True}]
    found["ranges"] = [{"batch_size": 4, "edge": BROKEN, "breaks": None}]
    return found | {"n_test": 400, "n_train": 100, "epochs": 2, "optimizer": "sgd"} | changes


def cells() -> list[Cell]:
    return [
        Cell(4, ADVISED, 3, (0.70, 0.71, 0.72), (0.60, 0.61, 0.62)),
        Cell(4, BEST, 3, (0.80, 0.79, 0.78), (0.65, 0.67, 0.64)),
        Cell(4, BROKEN, 2, (), ()),
    ]


def test_the_regret_is_the_paired_difference_on_the_test_images() -> None:
    found = compare(told(), cells(), 100.0)
    d = np.array([0.05, 0.06, 0.02])
    assert found["regret"] == pytest.approx(d.mean())
    assert found["regret_seeds"] == pytest.approx(d.std(ddof=1) / np.sqrt(3))
    assert found["grid"]["base_lr"] == BEST
    assert (found["place"], found["of"]) == (2, 3)
    assert not found["tied_hold"]
    assert found["grid_images"] == 3 * 3 * 100 * 2
    assert found["random_regret"] == pytest.approx(d.mean() / 2)  # of two cells that did not break


def test_a_cell_that_broke_below_the_edge_is_told() -> None:
    found = compare(told(), cells(), 100.0)
    assert [it["base_lr"] for it in found["broke_below_the_edge"]] == [BROKEN]
    text = page("photos", "smallbatch advise", told(), found)
    assert "m = 4 at 2^-4 (2 of 3 survived)" in text
    assert "Regret on the test images: 4.3 points" in text
    above = compare(
        told(ranges=[{"batch_size": 4, "edge": BEST, "breaks": BROKEN}]), cells(), 100.0
    )
    assert above["broke_below_the_edge"] == []
    assert "says little" not in page("photos", "smallbatch advise", told(), above)


def test_the_same_choice_has_no_regret_and_no_error() -> None:
    found = compare(told(), cells()[:1], 100.0)
    assert (found["regret"], found["regret_seeds"], found["regret_images"]) == (0, 0, 0)
    assert found["tied_hold"]
    text = page("photos", "smallbatch advise", told(), found)
    assert "No regret: the full columns choose the advised cell." in text
    assert "Regret on" not in text


def test_the_command_names_no_folder_of_this_machine() -> None:
    words = ("--data", "/home/ann/photos", "--model", "resnet8")
    assert _command(words) == "smallbatch advise --data photos --model resnet8"


def test_a_budget_is_held_up_to_a_tenth_more() -> None:
    row = {"budget": "1m", "allowed_seconds": 60.0, "exit": 0, "data": "digits", "options": "",
           "training": "3 × 100", "answer": "m = 4", "on": "final",
           "warning_of_mlflow": False}  # fmt: skip
    text = budgets.page([{**row, "seconds": 65.9}, {**row, "seconds": 66.1}])
    assert "1 of 2 ended within 110 %" in text
    assert "| 110 % |" in text


def test_photographs_are_written_by_class(tmp_path: Path) -> None:
    import io

    import pandas as pd
    from PIL import Image

    rows: list[dict[str, Any]] = []
    for index in range(12):
        buffer = io.BytesIO()
        Image.new("RGB", (9, 7), (index, 0, 0)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": index % 4})
    source = tmp_path / "source"
    source.mkdir()
    pd.DataFrame(rows).to_parquet(source / "train-00000-of-00001.parquet")
    budgets.write_jpegs(source, tmp_path / "jpegs", classes=3, each=2)
    found = sorted(str(it.relative_to(tmp_path / "jpegs")) for it in tmp_path.glob("jpegs/*/*"))
    assert found == [f"class{kind}/{number:02d}.jpg" for kind in range(3) for number in (1, 2)]
