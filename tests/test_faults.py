"""The short version of the fault campaign (benchmarks/faults), as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.faults import servers, table
from benchmarks.faults.__main__ import ROUNDS
from benchmarks.faults.outages import HEALTHY, OUTAGES, UNTRACKED

ROOT = Path(__file__).parents[1]
SEED = 46
"""Of its draws those of each training begin with a kill, well before its end."""


@pytest.mark.slow
def test_the_short_campaign_loses_nothing(tmp_path: Path) -> None:
    words = ["--short", "--seed", str(SEED), "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # under two minutes where nothing else runs
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    postgres = servers.why_no_postgres() is None
    assert summary["total"]["cases"] == 5 + postgres
    assert summary["kills"] >= 6
    assert _nonzero(summary) == {}
    (killed,) = summary["outages"].values()
    assert len(killed["warnings"]) == 1


def test_the_committed_table_is_all_zeros() -> None:
    summary = json.loads((ROOT / "results/faults/summary.json").read_text())
    assert summary["kills"] >= table.KILLS
    assert summary["environment"]["git_dirty"] is False
    assert _nonzero(summary) == {}
    outages = summary["outages"]
    assert outages.keys() == {f"tracking: {name}" for name in OUTAGES}
    for it in outages.values():
        assert len(it["train_seconds"]) >= ROUNDS
    for name in OUTAGES.keys() - {HEALTHY, UNTRACKED}:
        assert outages[f"tracking: {name}"]["over_healthy"] <= table.SLOWER


def _nonzero(summary: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Counts that are not zero, by row; every row has every count."""
    rows = {name: {key: row[key] for key in table.COUNTS} for name, row in summary["rows"].items()}
    return {name: row for name, row in rows.items() if any(row.values())}
