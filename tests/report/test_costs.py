"""What a batch size costs: which memory and which speed the figure and its table have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.evaluation import evaluate, read_evaluation
from smallbatch.report.costs import (
    MANY,
    MEMORY,
    ONE,
    SPEED,
    cost_figures,
    cost_kinds,
    cost_rows,
    cost_table,
)
from smallbatch.report.environment import read_timings
from smallbatch.report.figures import Gallery
from smallbatch.report.page import build_report
from smallbatch.report.rows import Row
from tests.analysis import synthetic

STUDIES = (
    synthetic.Study("a", batch_sizes=(2, 8), base_lrs=(2.0**-8, 2.0**-7), seeds=2),
    synthetic.Study("b", batch_sizes=(2,), base_lrs=(2.0**-8,), settings={"norm": "batch"}),
)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return synthetic.write_models(tmp_path / "models", STUDIES)


def set_timing(models: Path, column: str, **changes: Any) -> None:
    path = models / "synthetic" / column / "timing.json"
    content = json.loads(path.read_text())
    for i, run in enumerate(content["runs"].values()):
        run["images_per_second"] = 100.0 * (i + 1)
    content["column"] = {key: value for key, value in (content["column"] | changes).items()
                         if value is not None}  # fmt: skip
    path.write_text(json.dumps(content))


def counted(runs: pd.DataFrame, **changes: Any) -> pd.DataFrame:
    """A row for each engine of every column: 1000·m bytes by loop, ten times as many by stacked."""
    keys = ["dataset", "study", "batch_size", "fingerprint", "model", "norm"]
    columns = runs[keys].drop_duplicates()
    each = 1000 * columns["batch_size"]
    loop = columns.assign(engine="loop", device="cpu", bytes=each)
    stacked = columns.assign(engine="stacked", device="cpu", bytes=10 * each)
    return pd.concat([loop, stacked], ignore_index=True).assign(**changes)


def read(models: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    out = models.parent / "evaluation"
    evaluate(models, out)
    return read_evaluation(out)[0], read_timings(models)


def test_a_single_runs_speed_by_loop_and_all_runs_together_by_stacked(models: Path) -> None:
    set_timing(models, "a/m2")  # runs of 100, 200, 300 and 400; the column by two workers 1000
    set_timing(models, "a/m8", engine="stacked", images_per_second=7020.4)
    set_timing(models, "b/m2", engine="stacked", images_per_second=None)
    runs, timings = read(models)
    table = cost_table(runs, timings, counted(runs))
    keys = ["study", "batch_size", "loop_bytes", "stacked_bytes", "engine", "images_per_second",
            "speed_of"]  # fmt: skip
    rows = table[keys].to_numpy().tolist()
    assert rows[0] == ["a", 2, 2000, 20000, "loop", 250.0, "run"]
    assert rows[1] == ["a", 8, 8000, 80000, "stacked", 7020.4, "column"]
    assert rows[2][:4] == ["b", 2, 2000, 20000]
    assert pd.isna(rows[2][4:]).all()  # several attempts: nobody knows
    points = [(it["study"], it["m"], it["panel"], it["of"], it["value"]) for it in cost_rows(table)]
    assert points == [
        ("a", 2, MEMORY, ONE, 2000),
        ("a", 2, SPEED, ONE, 250.0),
        ("a", 8, MEMORY, ONE, 8000),
        ("a", 8, SPEED, MANY, 7020.0),
        ("b", 2, MEMORY, ONE, 2000),
    ]


@pytest.mark.parametrize("changed", ["fingerprint", "model", "norm"])
def test_memory_of_something_else_is_left_out(models: Path, changed: str) -> None:
    runs, timings = read(models)
    table = cost_table(runs, timings, counted(runs, **{changed: "other"}))
    assert table[["loop_bytes", "stacked_bytes", "device"]].isna().all(axis=None)
    (figure,) = cost_figures("synthetic", cost_rows(table))
    assert "The memory was not counted: smallbatch measure does." in figure.caption
    assert "one run, trained by loop" in figure.caption
    assert MANY not in figure.caption


def test_memory_on_two_devices_is_left_out(models: Path) -> None:
    runs, timings = read(models)
    memory = counted(runs)
    memory.loc[(memory["study"] == "a") & (memory["batch_size"] == 8), "device"] = "cuda"
    table = cost_table(runs, timings, memory)
    assert table.loc[table["study"] == "a", "loop_bytes"].isna().all()
    assert table.loc[table["study"] == "b", "loop_bytes"].notna().all()


def test_without_either_there_is_no_figure(models: Path) -> None:
    runs, _ = read(models)
    table = cost_table(runs, pd.DataFrame(), pd.DataFrame())
    assert len(table) == 3
    assert cost_figures("synthetic", cost_rows(table)) == []
    rows = cost_rows(cost_table(runs, pd.DataFrame(), counted(runs)))
    (figure,) = cost_figures("synthetic", rows)
    assert "Speed" not in figure.caption
    assert figure.alt == f"Line charts: {MEMORY} against the batch size for 2 studies on synthetic."
    assert cost_figures("other", rows) == []


def test_no_line_joins_the_speed_of_one_run_and_of_all_together(tmp_path: Path) -> None:
    """Of one study `stacked` trained m = 2 and 4, and `loop` 8 and 16."""
    rows: list[Row] = [
        {"dataset": "d", "study": "s", "model": "resnet8", "norm": "none", "m": m, "panel": panel,
         "of": of, "value": 1000.0 / m}
        for m, speed_of in ((2, MANY), (4, MANY), (8, ONE), (16, ONE))
        for panel, of in ((MEMORY, ONE), (SPEED, speed_of))
    ]  # fmt: skip
    (figure,) = cost_figures("d", rows)
    assert "trained by stacked; no line joins the two." in figure.caption
    Gallery(tmp_path, cost_kinds(), {"costs": rows}).add(figure)
    drawn = (tmp_path / "d.costs.svg").read_text()
    paths = re.findall(r'class="mark-line [^>]*><path d="([^"]*)"', drawn)
    assert sorted(path.count("L") for path in paths) == [1, 1, 3]


def test_the_report_has_the_figure_and_its_table(models: Path) -> None:
    runs, _ = read(models)
    root = models.parent
    (root / "measurements/memory").mkdir(parents=True)
    counted(runs).to_csv(root / "measurements/memory/synthetic.csv", index=False)
    page = build_report(root / "evaluation", models, root).read_text()
    assert 'data-figure="synthetic.costs"' in page
    drawn = (root / "figures/synthetic.costs.svg").read_text()
    assert MEMORY in drawn
    assert SPEED in drawn
    table = pd.read_csv(root / "tables/costs.csv")
    assert table["loop_bytes"].tolist() == [2000, 8000, 2000]
    assert table["images_per_second"].tolist() == [500.0] * 3
