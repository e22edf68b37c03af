"""The tables of the report as CSV files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.analysis.cells import STUDY_KEYS
from smallbatch.analysis.evaluation import write_table
from smallbatch.analysis.stability import fit_upper_limit

if TYPE_CHECKING:
    from pathlib import Path

    from smallbatch.report.frames import Frames


def write_tables(
    directory: Path,
    frames: Frames,
    curves: pd.DataFrame,
    timings: pd.DataFrame,
    under_budgets: pd.DataFrame,
    costs: pd.DataFrame,
) -> None:
    """Write every table into a directory, complete or not at all.

    Args:
        directory: For the files.
        frames: The data of the page.
        curves: Of all studies, as `median_curves` makes them.
        timings: As `read_timings` makes them.
        under_budgets: As `budgets.under_budgets` makes them.
        costs: As `cost_table` makes them.
    """
    ranges = frames.ranges.assign(
        holes=[" ".join(f"{value:g}" for value in holes) for holes in frames.ranges["holes"]]
    )
    winners = frames.winners.assign(
        overlapping=[" ".join(map(str, values)) for values in frames.winners["overlapping"]]
    )
    write_table(frames.best, directory / "best_accuracy.csv")
    write_table(frames.best_on_validation, directory / "best_accuracy_on_validation.csv")
    write_table(ranges, directory / "stable_range.csv")
    write_table(curves, directory / "convergence.csv")
    write_table(winners, directory / "studies.csv")
    write_table(frames.cells, directory / "cells.csv")
    write_table(frames.bn_cells, directory / "bn_batch.csv")
    write_table(_fits(frames.ranges), directory / "limit_fit.csv")
    write_table(timings, directory / "timing.csv")
    write_table(under_budgets, directory / "budgets.csv")
    write_table(costs, directory / "costs.csv")


def _fits(ranges: pd.DataFrame) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for (dataset, study, fraction), group in ranges.groupby([*STUDY_KEYS, "fraction"]):
        fit = fit_upper_limit(group)
        if fit is not None:
            rows.append({"dataset": dataset, "study": study, "fraction": fraction, **vars(fit)})
    names = ["base_lr_0", "m_star", "rms_octaves", "n_points", "m_star_bound"]
    return pd.DataFrame(rows, columns=[*STUDY_KEYS, "fraction", *names])
