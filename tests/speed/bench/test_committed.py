"""The committed benchmark files hold what was asked of them, and come from committed code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "results/bench"
# stacked / textbook by m: ResNet-8 with batch norm, 13 base learning rates × 2 seeds, two cores.
ASKED = {
    "cpu-8x8": {2: 10.0, 8: 4.5, 32: 3.0, 128: 2.5},
    "cpu-32x32": {2: 3.5, 8: 2.0, 32: 2.2, 128: 2.0},
}


@pytest.mark.parametrize("name", ASKED)
def test_medians_reach_what_was_asked(name: str) -> None:
    record = json.loads((BENCH / f"{name}.json").read_text())
    settings, environment = record["settings"], record["environment"]
    assert (settings["model"], settings["norm"], settings["lanes"]) == ("resnet8", "batch", 26)
    assert (environment["cores"], environment["git_dirty"]) == (2, False)
    found = {workload["batch_size"]: workload["engines"] for workload in record["cases"]}
    assert found.keys() == ASKED[name].keys()
    for m, engines in found.items():
        assert all(len(engine["repeats"]) >= 3 for engine in engines.values())
        ratio = engines["stacked"]["median"] / engines["textbook"]["median"]
        assert ratio >= ASKED[name][m]
        assert engines["stacked"]["over_textbook"] == pytest.approx(ratio)
