"""The short version of the fault campaign (benchmarks/faults), as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_short_campaign_loses_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--short", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    total = summary["total"]
    assert total["crashes"] >= 5
    assert total["cases"] == 6  # two studies of each engine, an evaluation, a tracking server
    assert not any(value for key, value in total.items() if key not in _COUNTED), total
    (outage,) = summary["outages"]
    assert (outage["warnings"], outage["tracebacks"]) == (1, 0)


_COUNTED = ("cases", "crashes", "damaged")


def test_the_committed_table_is_all_zeros() -> None:
    summary = json.loads((ROOT / "results/faults/summary.json").read_text())
    assert summary["total"]["crashes"] >= 200
    for row in summary["rows"].values():
        assert not any(value for key, value in row.items() if key not in _COUNTED), row
