"""Where and how long columns were trained: true of the columns that are known to it."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from smallbatch.records.hardware import Trained, trained_by
from smallbatch.records.schema import Clock, Timing
from smallbatch.report.environment import environment_table, mixed_hardware

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
    assert found["Kernels"] == ["–", "triton"]


def said(*columns: tuple[str, int, list[tuple[str, str, int]]]) -> list[str]:
    """What is said of columns: study, m, and what trained how many of their runs."""
    return mixed_hardware(
        pd.DataFrame(
            [{"dataset": "data", "study": study, "batch_size": m, "trained_by": json.dumps(trained)}
             for study, m, trained in columns]
        )
    )  # fmt: skip


DIFFERENT = "Between these, numbers round differently, and times cannot be compared."


def test_columns_and_studies_of_several_kinds_of_hardware_are_named() -> None:
    on_x, on_y = ("X", "", 4), ("Y", "", 4)
    assert said(("one", 2, [on_x]), ("one", 16, [on_x]), ("other", 2, [on_y])) == []
    assert said(("s", 16, [on_y]), ("s", 2, [on_x]), ("s", 32, [on_x]), ("t", 2, [on_x])) == [
        "data/s: m = 2 and 32 on X; m = 16 on Y.",
        DIFFERENT,
    ]
    assert said(("s", 16, [("X", "", 3), ("Y", "", 1)]), ("s", 2, [on_x])) == [
        "data/s, m = 16: 3 runs on X, 1 run on Y.",
        "data/s: m = 2 on X; m = 16 on X and Y.",
        DIFFERENT,
    ]
    by_engines = [("X", " by loop", 1), ("X", " by stacked", 2)]
    assert said(("s", 16, by_engines), ("s", 2, [on_x])) == [
        "data/s, m = 16: 1 run on X by loop, 2 runs on X by stacked.",
        DIFFERENT,
    ]
    assert said(("s", 16, []), ("s", 2, [on_x])) == []  # what old files do not know
    assert mixed_hardware(pd.DataFrame()) == []


def timing(
    column: dict[str, Any], environment: dict[str, Any], *runs: dict[str, Any]
) -> list[Trained]:
    clocks = [Clock(started=EARLY, seconds=1.0, environment=own) for own in runs]
    names = {f"run {i}": clock for i, clock in enumerate(clocks)}
    return trained_by(Timing.model_validate(
        {"column": column, "environment": environment, "runs": names}
    ))  # fmt: skip


def test_what_trained_a_columns_runs_is_read_from_its_timing_file() -> None:
    gpu = {"device": "cuda", "gpu": "G", "hardware": "G AVX2"}
    here = {"device": "cpu", "gpu": None, "hardware": "00 AVX512"}
    assert timing({"device": "cpu"}, {"cpu": "X", "gpu": None}, {}, {}) == [("X", "", 2)]
    assert timing({}, {"cpu": "X"}, gpu, here, here) == [("X", "", 2), ("G", "", 1)]
    # Two of one name are told apart by what else is known of them.
    masked = here | {"hardware": "ff AVX2"}
    assert timing({}, {"cpu": "X"}, here, here, masked) == [
        ("X (00 AVX512)", "", 2),
        ("X (ff AVX2)", "", 1),
    ]
    loop, stacked = {"engine": "loop", "kernels": None}, {"engine": "stacked", "kernels": "torch"}
    assert timing({"device": "cpu"}, {"cpu": "X"}, loop, stacked, loop) == [
        ("X", " by engine loop", 2),
        ("X", " by engine stacked with torch kernels", 1),
    ]
    assert timing({"engine": "loop"}, {}, {}, {}) == []
