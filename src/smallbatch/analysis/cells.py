"""One row per cell (data set, study, m, η̃): accuracy over the seeds, and whether it is reliable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.frames import GRID_KEYS, on_bn_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from smallbatch.records.reading import Kind

# The paper does not define "reliable convergence". This project's main reading is half of the way
# from chance to the study's best cell; other fractions show how results depend on it
# (docs/decisions.md).
MAIN_FRACTION = 0.5
FRACTIONS = (0.25, 0.5, 0.75, 0.9)

STUDY_KEYS = ["dataset", "study"]

CELLS: dict[str, Kind] = {
    **dict.fromkeys(STUDY_KEYS, "text"),
    **dict.fromkeys(("batch_size", "n_seeds", "n_diverged"), "whole"),
    **dict.fromkeys(("base_lr", "lr", "chance"), "number"),
    **dict.fromkeys(("accuracy", "mean_accuracy", "min_accuracy", "max_accuracy"), "number?"),
    **dict.fromkeys(("sd_accuracy", "validation_accuracy", "train_accuracy"), "number?"),
    **dict.fromkeys(("population_test_accuracy", "generalisation_gap"), "number?"),
    **dict.fromkeys(("best_accuracy", "reach"), "number?"),
    "reliable": "truth",
    "optimizer": "text",
}
"""Columns of the table of cells."""


def summarise_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarise the runs of each cell over its seeds.

    A diverged run ranks below every finished one: it counts in the median and is never dropped or
    replaced by a number. A median (or minimum) that falls on a diverged run is NaN; mean and
    standard deviation are NaN if any run diverged.

    Args:
        runs: One row per run, as `load_results` makes them. Studies of several BN batch sizes have
            another grid and are left out (see `analysis.ghost`).

    Returns:
        One row per cell: ``n_seeds``, ``n_diverged``, ``accuracy`` (the median over seeds of the
        reported accuracy, 0..1), ``mean_accuracy``, ``min_accuracy``, ``max_accuracy``,
        ``sd_accuracy`` (with n - 1), medians of further quantities, ``chance``, ``best_accuracy``
        (of the study's best cell), ``reach`` and ``reliable`` (see `add_reliability`). ``base_lr``
        is η̃, under the ``optimizer`` adamw η, which ``lr`` is for all.
    """
    runs = runs[~on_bn_axis(runs)]
    marked = runs.assign(
        _diverged=runs["outcome"].eq("diverged"),
        _accuracy=ranked(runs, "reported_accuracy"),
        _validation=ranked(runs, "reported_validation_accuracy"),
        _train=ranked(runs, "final_train_accuracy"),
        _population=ranked(runs, "population_test_accuracy"),
        _gap=runs["generalisation_gap"],
    )
    grouped = marked.groupby(GRID_KEYS, as_index=False, sort=True)
    cells = grouped.agg(
        lr=("lr", "first"),
        n_seeds=("run", "size"),
        n_diverged=("_diverged", "sum"),
        accuracy=("_accuracy", "median"),
        mean_accuracy=("reported_accuracy", "mean"),
        min_accuracy=("_accuracy", "min"),
        max_accuracy=("_accuracy", "max"),
        sd_accuracy=("reported_accuracy", "std"),
        validation_accuracy=("_validation", "median"),
        train_accuracy=("_train", "median"),
        population_test_accuracy=("_population", "median"),
        generalisation_gap=("_gap", "median"),
        classes=("classes", "first"),
        optimizer=("optimizer", "first"),
    )
    any_diverged = cells["n_diverged"] > 0
    # A diverged run has no generalisation gap and its gap has no rank, so there is no median gap.
    cells.loc[any_diverged, ["mean_accuracy", "sd_accuracy", "generalisation_gap"]] = np.nan
    cells = cells.replace([-np.inf], np.nan)
    cells["chance"] = 1.0 / cells.pop("classes")
    return add_reliability(cells)


def add_reliability(cells: pd.DataFrame) -> pd.DataFrame:
    """Add how far each cell's worst seed gets from chance to the study's best cell.

    A cell converges reliably at fraction f if every seed finished and the reported accuracy of
    every seed is at least τ = chance + f·(best - chance), where best is the highest median over
    seeds among the study's cells (docs/decisions.md, Numbers). This is the strictest reading: one
    bad seed makes a cell unreliable.

    Returns:
        The cells with ``best_accuracy``; with ``reach`` = (min_accuracy - chance)/(best - chance),
        NaN if a seed diverged or if the study's best cell is no better than chance; and with
        ``reliable`` = reach ≥ ½.
    """
    best = cells.groupby(STUDY_KEYS)["accuracy"].transform("max")
    headroom = (best - cells["chance"]).where(best > cells["chance"])
    reach = ((cells["min_accuracy"] - cells["chance"]) / headroom).where(cells["n_diverged"] == 0)
    return cells.assign(best_accuracy=best, reach=reach, reliable=is_reliable(reach, MAIN_FRACTION))


def is_reliable(reach: pd.Series[float], fraction: float) -> pd.Series[bool]:
    """Whether each cell gets at least ``fraction`` of the way from chance to the best cell."""
    # Accuracies are ratios of small integers, so equality with the threshold is possible, and
    # rounding must not decide it.
    return reach >= fraction - 1e-9


def pivot(cells: pd.DataFrame, values: str | Sequence[str] = "accuracy") -> pd.DataFrame:
    """Arrange one study's cells as a table: rows η̃ ascending, columns m ascending."""
    return (
        cells.pivot_table(
            index="base_lr", columns="batch_size", values=values, dropna=False, aggfunc="first"
        )
        .sort_index(axis=0)
        .sort_index(axis=1)
    )


def ranked(runs: pd.DataFrame, name: str) -> pd.Series[float]:
    """The values of a column, in which a diverged run ranks below every finished one."""
    return runs[name].mask(runs["outcome"].eq("diverged"), -np.inf)
