"""Where and how long columns were trained: true of the columns that are known to it."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from smallbatch.report.environment import environment_table

HERE = {"device": "cpu", "cpu": "X", "gpu": None}
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


def rows(*columns: tuple[str | None, float, dict[str, Any]]) -> dict[str, list[str]]:
    """The table of columns that started, took so many seconds, and ran somewhere."""
    timings = pd.DataFrame(
        [{"started": started, "seconds": seconds, "environment": json.dumps(where)}
         for started, seconds, where in columns]
    )  # fmt: skip
    table = environment_table(timings)
    assert table is not None
    return {row[0]: list(row[1:]) for row in table.rows}


def test_each_environment_has_its_own_columns_times_and_days() -> None:
    there = HERE | {"device": "cuda", "gpu": "G"}
    found = rows((LATE, 10.0, HERE), (EARLY, 3600.0, there), (EARLY, 20.0, HERE))
    assert found["Device"] == ["cpu", "cuda"]
    assert found["GPU"] == ["–", "G"]
    assert found["Columns with a timing file"] == ["2", "1"]
    assert found["First started (UTC)"] == [EARLY, EARLY]
    assert found["Last started (UTC)"] == [LATE, EARLY]
    assert found["Time in training, summed"] == ["30.0 s", "60.0 min"]


def test_what_is_known_of_some_columns_only_is_not_said_of_all() -> None:
    found = rows((None, math.nan, HERE), (LATE, 10.0, HERE))
    assert found["First started (UTC)"] == found["Last started (UTC)"] == [LATE]
    assert found["Time in training, summed"] == ["10.0 s (1 of 2 columns)"]


def test_what_is_known_of_no_column_is_a_dash() -> None:
    found = rows((None, math.nan, HERE))
    assert found["First started (UTC)"] == found["Time in training, summed"] == ["–"]


def test_a_property_that_one_environment_lacks_is_a_dash_there() -> None:
    found = rows((LATE, 1.0, HERE), (LATE, 1.0, {"device": "cpu", "kernels": "triton"}))
    assert found["CPU"] == ["X", "–"]
    assert found["kernels"] == ["–", "triton"]
