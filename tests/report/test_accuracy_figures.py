from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from smallbatch.report.accuracy_figures import best_accuracy


@pytest.mark.parametrize("count", [1, 2, 12])
def test_points_stay_at_their_batch_size_and_studies_can_be_told_apart(count: int) -> None:
    studies = [f"study-{i}" for i in range(count)]
    batch_sizes = [2, 4, 8, 512]
    rows = [
        {"study": study, "batch_size": m, "accuracy": 0.5, "min_accuracy": 0.4, "max_accuracy": 0.6}
        for study in studies
        for m in batch_sizes
    ]
    axes = best_accuracy(pd.DataFrame(rows), studies).axes[0]
    containers: list[Any] = axes.containers
    curves = [container.lines[0] for container in containers]
    left, right = axes.get_xlim()
    for curve in curves:
        x = np.asarray(curve.get_xdata(), dtype=float)
        assert np.abs(x - np.log2(batch_sizes)).max() < 0.34
        assert left < x.min()
        assert x.max() < right
    looks = {(c.get_color(), c.get_marker(), c.get_linestyle()) for c in curves}
    assert len(looks) == len(curves) == count


def test_a_seed_that_diverged_is_marked_where_the_bar_has_no_end() -> None:
    rows = [
        {"study": "a", "batch_size": 8, "accuracy": 0.5, "min_accuracy": 0.4, "max_accuracy": 0.6},
        {"study": "a", "batch_size": 16, "accuracy": 0.6, "min_accuracy": np.nan,
         "max_accuracy": 0.7},
    ]  # fmt: skip
    axes = best_accuracy(pd.DataFrame(rows), ["a"]).axes[0]
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [np.ravel(line.get_xydata()).tolist() for line in crosses] == [[4.0, 0.0]]
    assert axes.get_ylim()[0] > 35
