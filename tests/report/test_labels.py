from __future__ import annotations

import math

import pytest

from smallbatch.report.labels import duration, listed, percent, points, power_of_two, spread


@pytest.mark.parametrize(
    ("value", "text"),
    [(2**-12, "2⁻¹²"), (1.0, "2⁰"), (8.0, "2³"), (0.003, "0.003"), (math.nan, "–")],
)
def test_learning_rates(value: float, text: str) -> None:
    assert power_of_two(value) == text


def test_accuracies() -> None:
    assert percent(0.8764) == "87.6 %"
    assert percent(math.nan) == "–"
    assert (points(0.05), points(-0.05)) == ("+5.0", "−5.0")
    assert spread(0.8, 0.9) == "80.0 … 90.0 %"
    assert spread(math.nan, 0.9) == "diverged … 90.0 %"
    assert spread(math.nan, math.nan) == "all diverged"


def test_prose() -> None:
    assert listed([]) == ""
    assert listed(["2"]) == "2"
    assert listed(["2", "4"]) == "2 and 4"
    assert listed(["2", "4", "8"]) == "2, 4 and 8"
    assert (duration(5), duration(300), duration(9000)) == ("5.0 s", "5.0 min", "2.5 h")
