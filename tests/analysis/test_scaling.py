"""How the best η goes with m, against arithmetic."""

from __future__ import annotations

import pandas as pd
import pytest

from smallbatch.analysis.scaling import scaling
from smallbatch.report.scaling_words import scaling_sentence


def best(
    lrs: dict[int, float], optimizer: str = "adamw", edge: dict[int, str] | None = None
) -> pd.DataFrame:
    return pd.DataFrame(
        {"batch_size": list(lrs), "lr": list(lrs.values()), "optimizer": optimizer,
         "grid_edge": [(edge or {}).get(m, "") for m in lrs]}
    )  # fmt: skip


GRID = pd.DataFrame({"lr": [2.0**k for k in range(-14, 0, 2)]})


@pytest.mark.parametrize(
    ("exponent", "nearest"), [(0.0, "constant"), (0.5, "square root"), (1.0, "linear")]
)
def test_a_power_law_is_found_again(exponent: float, nearest: str) -> None:
    found = scaling(best({m: 2**-10 * m**exponent for m in (4, 16, 64, 256)}), GRID)
    assert found is not None
    assert found.exponent == pytest.approx(exponent)
    assert found.nearest == nearest
    assert found.by_rule(nearest, 256) == pytest.approx(2**-10 * 256**exponent)
    assert found.by_rule("linear", 16) == pytest.approx(4 * 2**-10 * 4**exponent)


def test_what_the_grid_leaves_open_is_the_farthest_that_half_a_step_can_turn_the_line() -> None:
    # Steps of two octaves: each best η may be off by one. With log₂ m = 2, 4, 6 the steepest line
    # through such errors rises by two octaves more over four.
    found = scaling(best({4: 2**-10, 16: 2**-10, 64: 2**-10}), GRID)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((-0.5, 0.5))
    assert found.open == ("constant", "square root")
    assert "η ∝ √m would fit as well" in scaling_sentence(found)


def test_a_best_eta_on_the_edge_of_the_grid_is_only_a_bound_and_left_out() -> None:
    lrs = {2: 2**-12, 4: 2**-10, 16: 2**-9, 64: 2**-8}
    found = scaling(best(lrs, edge={2: "lower"}), GRID)
    assert found is not None
    assert found.batch_sizes == (4, 16, 64)
    assert found.exponent == pytest.approx(0.5)
    nothing = scaling(best(lrs, edge={2: "lower", 64: "upper"}), GRID)
    assert nothing is None
    assert "fewer than 3 batch sizes" in scaling_sentence(nothing)


def test_studies_whose_grid_is_of_base_learning_rates_have_no_such_slope() -> None:
    assert scaling(best({2: 0.1, 4: 0.2, 8: 0.4}, "momentum"), GRID) is None
