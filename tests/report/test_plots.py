"""The templates of `dvc plots` against the tables that `dvc.yaml` draws with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from smallbatch.analysis.cells import STUDY_KEYS
from smallbatch.analysis.convergence import CURVES
from smallbatch.analysis.generalisation import BEST_COLUMNS

ROOT = Path(__file__).parents[2]
TABLES = {
    "reports/tables/best_accuracy.csv": (BEST_COLUMNS, {*STUDY_KEYS}),
    "reports/tables/convergence.csv": ([*STUDY_KEYS, *CURVES], {*STUDY_KEYS, "batch_size"}),
}


@pytest.mark.parametrize("table", sorted(TABLES))
def test_a_line_joins_the_points_of_one_curve_alone(table: str) -> None:
    columns, curve = TABLES[table]
    plots: list[Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    (plot,) = [plot for each in plots if isinstance(each, dict) for plot in each.values()
               if table in plot["y"]]  # fmt: skip
    assert {plot["x"], plot["y"][table]} <= set(columns)
    template = json.loads((ROOT / f".dvc/plots/{plot['template']}.json").read_text())
    made = {one["as"]: set(re.findall(r"datum\.(\w+)", one["calculate"]))
            for one in template["transform"] if "as" in one}  # fmt: skip
    encoding = template["encoding"]
    told: set[str] = set()
    for channel in {"color", "strokeDash", "facet"} & set(encoding):
        field = encoding[channel]["field"]
        told |= made.get(field, {field})
    assert told == {*curve, "rev"}  # DVC adds the revision
    # Where most seeds diverged there is no value: an empty text, which would be drawn at 0.
    assert {"filter": "isValid(toNumber(datum['<DVC_METRIC_Y>']))"} in template["transform"]
    assert {"dataset", "study", "rev"} <= {each["field"] for each in encoding["tooltip"]}
