from __future__ import annotations

import pandas as pd

from smallbatch.analysis.cells import MAIN_FRACTION
from smallbatch.report.tables import range_table


def test_a_range_has_its_width_whatever_the_step_of_the_grid() -> None:
    row = {
        "batch_size": 8, "fraction": MAIN_FRACTION, "lower": 0.001, "upper": 0.0031,
        "octaves": 1.6323, "n_reliable": 3, "n_base_lrs": 4, "lower_lr": 0.008, "upper_lr": 0.0248,
        "lower_limit": "", "upper_limit": "", "holes": (), "threshold": 0.5,
    }  # fmt: skip
    table = range_table(pd.DataFrame([row]))
    assert "1.63" in table.rows[0]
