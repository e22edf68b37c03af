"""Convergence curves of all batch sizes at one base learning rate (paper, Fig. 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from smallbatch.report.style import MARKERS, legend_columns, new_figure, ordered_colours

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_AXIS = {"test_accuracy": "test accuracy (%)", "train_loss": "training loss (log scale)"}


def convergence(curves: pd.DataFrame, measure: str) -> Figure:
    """Draw ``test_accuracy`` or ``train_loss`` against the epoch, a curve per m.

    A curve whose median falls on a diverged run ends with a cross in the epoch before. Losses far
    above those of the curves that reach their last epoch are drawn at the top. The last epoch is
    that of each m's own curve: with equal updates, they have different numbers of epochs.
    """
    figure, axes = new_figure()
    batch_sizes = sorted(curves["batch_size"].unique())
    last_epoch = int(curves["epoch"].max())
    highest = _highest(curves, measure)
    factor = 100 if measure == "test_accuracy" else 1
    for index, (batch_size, colour) in enumerate(
        zip(batch_sizes, ordered_colours(len(batch_sizes)), strict=True)
    ):
        whole = curves[curves["batch_size"] == batch_size]
        curve = whole.dropna(subset=[measure])
        epochs, values = curve["epoch"], factor * curve[measure].clip(upper=highest)
        axes.plot(
            epochs,
            values,
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markevery=(index % 3, max(3, last_epoch // 8)),
            label=str(batch_size) if len(curve) else f"{batch_size} ×",
        )
        if len(curve) and epochs.iloc[-1] < whole["epoch"].max():
            axes.plot(
                [epochs.iloc[-1]], [values.iloc[-1]], marker="x", color=colour, markersize=8, mew=2
            )
    if measure == "train_loss":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel(_AXIS[measure])
    labels = axes.get_legend_handles_labels()[1]
    figure.legend(loc="outside lower center", ncols=legend_columns(labels), title="batch size m")
    return figure


def _highest(curves: pd.DataFrame, measure: str) -> float | None:
    """The largest value to draw, so that a loss about to diverge does not flatten the others."""
    if measure != "train_loss":
        return None
    values = curves.dropna(subset=[measure])
    last = curves.groupby("batch_size")["epoch"].transform("max").loc[values.index]
    whole = values.loc[values["epoch"] == last, "batch_size"]
    finished = values.loc[values["batch_size"].isin(whole), measure]
    return 1.5 * float(finished.max()) if len(finished) else None
