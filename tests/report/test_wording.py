from __future__ import annotations

import math
from typing import Any

import pytest

from smallbatch.report.wording import best_sentence

WINNER: dict[str, Any] = {
    "accuracy": 0.67, "min_accuracy": 0.6, "max_accuracy": 0.69, "n_seeds": 5, "batch_size": 16,
    "base_lr": 0.5, "lr": 8.0, "overlapping": (),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "n_batch_sizes", "end"),
    [
        ({}, 2, "best cell reaches its worst seed."),
        ({"min_accuracy": math.nan}, 2, "reaches its median; some of its own seeds diverged."),
        ({"overlapping": (4,)}, 2, "these runs do not settle the order."),
        ({}, 1, "(η = 2³)."),
        ({"n_seeds": 1}, 2, "(η = 2³)."),
    ],
)
def test_the_order_of_batch_sizes_is_as_sure_as_the_seeds_make_it(
    changed: dict[str, Any], n_batch_sizes: int, end: str
) -> None:
    assert best_sentence(WINNER | changed, n_batch_sizes).endswith(end)
