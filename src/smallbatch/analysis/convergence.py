"""Convergence curves of all batch sizes at one base learning rate (arXiv 1804.07612, Fig. 4)."""

from __future__ import annotations

import numpy as np
import pandas as pd

# High accuracies and low losses are good; a diverged run ranks behind every finished one.
_WORST = {"test_accuracy": -np.inf, "train_loss": np.inf, "train_accuracy": -np.inf}


PAPER_BASE_LR = 2.0**-8
PAPER_FIGURE = "7"  # Fig. 4 shows the curves of Fig. 7's study, all at one η̃


CURVES = ("batch_size", "base_lr", "epoch", "updates", "n_seeds", *_WORST, "diverged")
"""Columns of the table that `median_curves` makes."""


def shown_base_lr(cells: pd.DataFrame, figure: object) -> float:
    """The η̃ whose curves are shown: for Fig. 7's study the paper's, otherwise the commonest."""
    if figure == PAPER_FIGURE and cells["base_lr"].eq(PAPER_BASE_LR).any():
        return PAPER_BASE_LR
    return common_base_lr(cells)


def common_base_lr(cells: pd.DataFrame) -> float:
    """The η̃ that is reliable at the most batch sizes of one study; if several are, the largest.

    If none is reliable anywhere, that of the cell with the highest accuracy (of equals the
    smallest), or the lowest of all where no cell has an accuracy: the largest often diverges at
    once and has no curve.
    """
    counts = cells.groupby("base_lr")["reliable"].sum().sort_index()
    if not counts.any():
        ordered = cells.sort_values(["accuracy", "base_lr"], ascending=[False, True])
        return float(ordered["base_lr"].iloc[0])
    return float(counts[counts == counts.max()].index[-1])


def median_curves(history: pd.DataFrame) -> pd.DataFrame:
    """The median over seeds at every epoch, for the rows of one study and one η̃.

    From the epoch of its divergence on, a diverged run counts as worse than every other run. A
    median that falls on such a run is NaN.

    Returns:
        One row per (batch_size, epoch), up to the last epoch of any run of that m: ``base_lr``,
        ``updates``, ``n_seeds``, the medians of test accuracy, training loss and training accuracy
        (running means over the epoch), and ``diverged``: whether the median falls on a diverged
        run, from that epoch on. A curve that ends without it has no more epochs, as with equal
        updates, where each m has a number of its own.
    """
    parts = [_median_of_column(column) for _, column in history.groupby("batch_size")]
    return pd.concat(parts, ignore_index=True)


def _median_of_column(column: pd.DataFrame) -> pd.DataFrame:
    diverged_in = column[column["outcome"] == "diverged"].groupby("run")["epoch"].max()
    epochs = pd.RangeIndex(1, int(column["epoch"].max()) + 1, name="epoch")
    table: dict[str, object] = {}
    for measure, worst in _WORST.items():
        # rows: epochs, columns: runs
        values = column.pivot_table(index="epoch", columns="run", values=measure, dropna=False)
        values = values.reindex(epochs)
        for run, epoch in diverged_in.items():
            values.loc[values.index >= epoch, str(run)] = worst
        with np.errstate(invalid="ignore"):  # a median between two diverged runs is ∞ − ∞
            median = values.median(axis=1)
        table[measure] = median.where(np.isfinite(median))
    curves = pd.DataFrame(table, index=epochs).reset_index()
    curves.insert(0, "batch_size", int(column["batch_size"].iloc[0]))
    curves.insert(1, "base_lr", float(column["base_lr"].iloc[0]))
    curves.insert(3, "updates", curves["epoch"].map(column.groupby("epoch")["updates"].max()))
    curves.insert(4, "n_seeds", column["run"].nunique())
    return curves.assign(diverged=_fallen(column, diverged_in, epochs).to_numpy())


def _fallen(
    column: pd.DataFrame, diverged_in: pd.Series[int], epochs: pd.RangeIndex
) -> pd.Series[bool]:
    """Whether at least half of the runs that go so far have diverged by each epoch."""
    ends = column.groupby("run")["epoch"].max()
    finished = ends[~ends.index.isin(diverged_in.index)].to_numpy()
    lost = pd.Series([int((diverged_in <= epoch).sum()) for epoch in epochs], index=epochs)
    going = pd.Series([int((finished >= epoch).sum()) for epoch in epochs], index=epochs)
    going += len(diverged_in) - lost
    return lost.ge(going)
