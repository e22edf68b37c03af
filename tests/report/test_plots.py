"""The templates of `dvc plots` against the tables that `dvc.yaml` draws with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from smallbatch.analysis.cells import STUDY_KEYS

ROOT = Path(__file__).parents[2]
PLOTS: dict[str, Any] = {
    title: plot
    for each in yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    for title, plot in each.items()
}
# What DVC puts in for texts of its own, and what the templates make of columns.
ANCHORS = {"<DVC_METRIC_X>": "x", "<DVC_METRIC_Y>": "y"}
CURVES = {
    "best accuracy against batch size": {*STUDY_KEYS},
    "convergence of test accuracy": {*STUDY_KEYS, "batch_size"},
}


def template(plot: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    text = (ROOT / f".dvc/plots/{plot['template']}.json").read_text()
    return text, json.loads(text)


def test_every_template_and_table_is_drawn_once() -> None:
    names = [plot["template"] for plot in PLOTS.values()]
    assert sorted(names) == sorted(path.stem for path in (ROOT / ".dvc/plots").glob("*.json"))
    tables = [table for plot in PLOTS.values() for table in plot["y"]]
    assert len(set(tables)) == len(tables) == len(PLOTS)


@pytest.mark.parametrize("title", sorted(PLOTS))
def test_all_that_a_template_reads_is_in_the_table(title: str, reports: Path) -> None:
    plot = PLOTS[title]
    ((table, y),) = plot["y"].items()
    columns = set(pd.read_csv(reports.parent / table, nrows=0).columns)
    assert {plot["x"], y} <= columns
    text, spec = template(plot)
    made = {one["as"] for one in spec["transform"] if "as" in one}
    read = set(re.findall(r"datum\.(\w+)", text)) | set(re.findall(r'"field": "([^"]+)"', text))
    assert read - made - columns - {"rev", "value", *ANCHORS} == set()  # DVC adds the revision


@pytest.mark.parametrize("title", sorted(CURVES))
def test_a_line_joins_the_points_of_one_curve_alone(title: str) -> None:
    _, spec = template(PLOTS[title])
    made = {one["as"]: set(re.findall(r"datum\.(\w+)", one["calculate"]))
            for one in spec["transform"] if "as" in one}  # fmt: skip
    encoding = spec["encoding"]
    told: set[str] = set()
    for channel in {"color", "strokeDash", "facet"} & set(encoding):
        field = encoding[channel]["field"]
        told |= made.get(field, {field})
    assert told == {*CURVES[title], "rev"}
    # Where most seeds diverged there is no value: an empty text, which would be drawn at 0.
    assert {"filter": "isValid(toNumber(datum['<DVC_METRIC_Y>']))"} in spec["transform"]
    assert {"dataset", "study", "rev"} <= {each["field"] for each in encoding["tooltip"]}
