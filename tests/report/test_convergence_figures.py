from __future__ import annotations

import numpy as np
import pandas as pd

from smallbatch.report.convergence_figures import convergence


def test_a_loss_about_to_diverge_does_not_flatten_the_others() -> None:
    curves = pd.DataFrame(
        {
            "batch_size": [2, 2, 2, 512, 512, 512],
            "epoch": [1, 2, 3, 1, 2, 3],
            "train_loss": [2.0, 1.5, 1.0, 1e30, np.nan, np.nan],
        }
    )
    (axes,) = convergence(curves, "train_loss").axes
    assert axes.get_ylim()[1] < 4
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [np.ravel(line.get_ydata()).tolist() for line in crosses] == [[3.0]]


def test_curves_that_all_end_early_are_drawn_as_they_are() -> None:
    curves = pd.DataFrame(
        {
            "batch_size": [2, 2, 4, 4],
            "epoch": [1, 2, 1, 2],
            "train_loss": [2.0, np.nan, 9.0, np.nan],
        }
    )
    (axes,) = convergence(curves, "train_loss").axes
    assert axes.get_ylim()[1] >= 9


def test_curves_of_equal_updates_end_where_they_end_without_a_cross() -> None:
    """Small batches have fewer epochs then; only what is missing of its own ends with a cross."""
    curves = pd.DataFrame(
        {
            "batch_size": [2, 2, 8, 8, 8, 32, 32, 32, 32],
            "epoch": [1, 2, 1, 2, 3, 1, 2, 3, 4],
            "train_loss": [9.0, 8.0, 2.0, 1.5, np.nan, 2.0, 1.5, 1.0, 0.5],
        }
    )
    (axes,) = convergence(curves, "train_loss").axes
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [np.ravel(line.get_xdata()).tolist() for line in crosses] == [[2]]
    assert axes.get_ylim()[1] >= 9
