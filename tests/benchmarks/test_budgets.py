from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from benchmarks.budgets import between, main
from click.testing import CliRunner

from tests.analysis import synthetic


def test_between_measured_batch_sizes_a_speed_is_linear_in_logarithms() -> None:
    found = between({2: 100.0, 8: 400.0, 32: 400.0}, [1, 2, 4, 16, 32, 64])
    assert list(found) == [2, 4, 16, 32]
    assert list(found.values()) == pytest.approx([100, 200, 400, 400])


def test_the_same_runs_are_priced_by_several_machines(tmp_path: Path) -> None:
    sizes = (2, 8, 32)
    synthetic.write_models(
        tmp_path / "models",
        tuple(
            replace(synthetic.STUDIES[1], name=f"net-{e}", epochs=e, batch_sizes=sizes)
            for e in (6, 12, 48)
        ),
    )
    machines = [
        {"name": "even", "of": ["net"], "source": "", "images_per_second": {2: 8, 32: 8}},
        {"name": "steep", "of": ["net"], "source": "", "images_per_second": {2: 8, 32: 128}},
        {"name": "of others", "of": ["other"], "source": "", "images_per_second": {2: 1, 32: 1}},
    ]
    (tmp_path / "rates.json").write_text(json.dumps(machines))
    assert CliRunner().invoke(main, [str(tmp_path)], catch_exceptions=False).exit_code == 0
    table = pd.read_csv(tmp_path / "budgets.csv")
    frames = ["equal epochs", "equal updates", "equal time: even", "equal time: steep"]
    assert table["frame"].drop_duplicates().tolist() == frames
    same = ["batch_size", "epochs", "standing"]
    own = {name: rows[same].round(6).values.tolist() for name, rows in table.groupby("frame")}
    # One speed for all is equal epochs; one in proportion to m is equal updates.
    assert own["equal time: even"] == own["equal epochs"]
    assert own["equal time: steep"] == own["equal updates"]
    assert (tmp_path / "synthetic.net.png").read_bytes().startswith(b"\x89PNG")
