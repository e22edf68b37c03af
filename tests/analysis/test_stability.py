from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.stability import fit_upper_limit, stable_ranges

NAN = math.nan


def cells_of(reach: dict[int, dict[float, float]]) -> pd.DataFrame:
    """Cells of one study from m → η̃ → reach; NaN stands for a cell with a diverged seed."""
    rows: list[dict[str, Any]] = [
        {
            "dataset": "d",
            "study": "s",
            "batch_size": batch_size,
            "base_lr": base_lr,
            "lr": batch_size * base_lr,
            "optimizer": "sgd",
            "chance": 0.1,
            "best_accuracy": 0.9,
            "reach": value,
            "n_diverged": int(math.isnan(value)),
        }
        for batch_size, column in reach.items()
        for base_lr, value in column.items()
    ]
    return pd.DataFrame(rows)


def only_range(column: dict[float, float], fraction: float = 0.5, m: int = 4) -> dict[Any, Any]:
    (row,) = stable_ranges(cells_of({m: column}), [fraction]).to_dict("records")
    return row


def test_ends_inside_the_grid_say_what_limits_them() -> None:
    row = only_range({2**-5: 0.2, 2**-4: 0.6, 2**-3: 1.0, 2**-2: 0.5, 2**-1: NAN})
    assert (row["lower"], row["upper"], row["octaves"]) == (2**-4, 2**-2, 2)
    assert (row["lower_lr"], row["upper_lr"]) == (2**-2, 1.0)
    assert (row["lower_limit"], row["upper_limit"]) == ("below threshold", "diverged")
    assert (row["n_reliable"], row["n_base_lrs"], row["holes"]) == (3, 5, ())
    assert row["threshold"] == pytest.approx(0.5)


def test_an_upper_end_can_be_too_inaccurate_rather_than_diverged() -> None:
    assert only_range({0.25: 1.0, 0.5: 0.1, 1.0: NAN})["upper_limit"] == "below threshold"


def test_ends_on_the_edge_of_the_grid_are_marked() -> None:
    row = only_range({0.25: 0.8, 0.5: 1.0})
    assert (row["lower_limit"], row["upper_limit"]) == ("grid edge", "grid edge")


def test_holes_are_listed_and_do_not_split_the_range() -> None:
    row = only_range({0.125: 0.8, 0.25: NAN, 0.5: 0.3, 1.0: 1.0, 2.0: NAN})
    assert (row["lower"], row["upper"]) == (0.125, 1.0)
    assert row["holes"] == (0.25, 0.5)
    assert row["n_reliable"] == 2


def test_an_empty_range_is_a_row_without_ends() -> None:
    row = only_range({0.25: 0.1, 0.5: NAN})
    assert row["n_reliable"] == 0
    assert math.isnan(row["lower"])
    assert math.isnan(row["octaves"])


def test_a_higher_fraction_narrows_the_range() -> None:
    cells = cells_of({4: {0.125: 0.3, 0.25: 0.6, 0.5: 0.95, 1.0: 0.8, 2.0: NAN}})
    ranges = stable_ranges(cells).set_index("fraction")
    assert ranges["lower"].to_dict() == {0.25: 0.125, 0.5: 0.25, 0.75: 0.5, 0.9: 0.5}
    assert ranges["upper"].to_dict() == {0.25: 1.0, 0.5: 1.0, 0.75: 1.0, 0.9: 0.5}


def upper_ends(ends: dict[int, float], limit: str = "diverged") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "batch_size": list(ends),
            "upper": list(ends.values()),
            "n_reliable": 3,
            "upper_limit": limit,
        }
    )


def test_the_fit_recovers_known_parameters() -> None:
    sizes = [2**k for k in range(1, 12)]
    fit = fit_upper_limit(upper_ends({m: 2**-5 / (1 + m / 24) for m in sizes}))
    assert fit is not None
    assert fit.base_lr_0 == pytest.approx(2**-5, rel=2e-3)
    assert fit.m_star == pytest.approx(24, rel=2e-3)
    assert fit.rms_octaves < 1e-3
    assert fit([24])[0] == pytest.approx(2**-6, rel=2e-3)
    assert fit.m_star_bound == ""


def test_the_fit_says_when_m_star_lies_outside_the_data() -> None:
    falling = fit_upper_limit(upper_ends({m: 1 / m for m in (2, 8, 32, 128)}))
    flat = fit_upper_limit(upper_ends(dict.fromkeys((2, 8, 32, 128), 0.25)))
    assert falling is not None
    assert flat is not None
    assert (falling.m_star_bound, flat.m_star_bound) == ("lower", "upper")


def test_ends_on_the_edge_take_no_part_in_the_fit() -> None:
    inside = upper_ends({m: 2**-5 / (1 + m / 24) for m in (8, 32, 128)})
    edge = upper_ends({2: 2**-9, 4: 2**-9}, limit="grid edge")
    fit = fit_upper_limit(pd.concat([edge, inside]))
    assert fit is not None
    assert fit.n_points == 3
    assert fit.m_star == pytest.approx(24, rel=2e-3)
    assert fit_upper_limit(pd.concat([edge, inside.head(2)])) is None
