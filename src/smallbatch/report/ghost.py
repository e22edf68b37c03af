"""The report's section on a study of BN batch and SGD batch sizes (paper, Figs. 13 and 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from smallbatch.report import paper
from smallbatch.report.accuracy_figures import seed_bars
from smallbatch.report.labels import count, listed, percent, power_of_two, spread
from smallbatch.report.style import (
    MARKERS,
    batch_size_axis,
    figure_style,
    legend_columns,
    new_figure,
    ordered_colours,
)
from smallbatch.report.tables import Table, settings_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from smallbatch.report.pictures import Gallery


def ghost_section(
    gallery: Gallery, name: str, cells: pd.DataFrame, runs: pd.DataFrame
) -> dict[str, Any]:
    """The figure and texts of one such study.

    Args:
        gallery: Saves the figure.
        name: The beginning of the file name: data set and study.
        cells: The cells of the study, as `analysis.ghost.bn_cells` makes them.
        runs: The runs of the study.
    """
    study, source = str(cells["study"].iloc[0]), runs["base_lr_from"].iloc[0]
    best = _best_by_sgd_batch(cells)
    figure = runs["figure"].iloc[0]
    with figure_style():
        picture = gallery.add(
            bn_batch_curves(cells),
            f"{name}.bn-batch",
            f"Line chart: reported test accuracy of {study} against the BN batch size, one curve "
            f"for each of {count(cells['batch_size'].nunique(), 'SGD batch size')}.",
            "Reported accuracy against the BN batch size, a curve per SGD batch size m (median "
            "over seeds; bars from the worst seed to the best). A cross on the axis: a seed "
            "diverged there.",
        )
    chosen = [f"{row['bn_batch_size']} at m = {row['batch_size']}" for row in best]
    return {
        "dataset": str(cells["dataset"].iloc[0]),
        "name": study,
        "paper": paper.paper_figure(figure if isinstance(figure, str) else None),
        "best": f"Best BN batch size: {listed(chosen)}." if chosen else "Every run diverged.",
        "range": "",
        "fit": f"Each m was trained at the η̃ that was best for it in {source} (chosen on the test "
        "set)."
        if isinstance(source, str)
        else "Each m was trained at the η̃ of the study's own "
        "grid; of several, the best one is shown (chosen on the test set).",
        "warnings": _warnings(cells),
        "pictures": [picture],
        "tables": [settings_table(runs), _table(cells)],
    }


def bn_batch_curves(cells: pd.DataFrame) -> Figure:
    """Accuracy against the BN batch size, a curve per SGD batch size; ``cells`` of one study."""
    figure, axes = new_figure()
    sizes = sorted(cells["batch_size"].unique())
    for index, (batch_size, colour) in enumerate(
        zip(sizes, ordered_colours(len(sizes)), strict=True)
    ):
        own = cells[cells["batch_size"] == batch_size].sort_values("bn_batch_size")
        at = np.log2(own["bn_batch_size"].to_numpy(dtype=float))
        marker = MARKERS[index % len(MARKERS)]
        seed_bars(axes, at, own, color=colour, marker=marker, label=str(batch_size))
    batch_size_axis(axes, cells["bn_batch_size"])
    axes.set_xlabel("BN batch size (log₂ scale)")
    axes.set_ylabel("reported test accuracy (%)")
    labels = axes.get_legend_handles_labels()[1]
    figure.legend(
        loc="outside lower center", ncols=legend_columns(labels), title="SGD batch size m"
    )
    return figure


def _best_by_sgd_batch(cells: pd.DataFrame) -> list[dict[Any, Any]]:
    some = cells.dropna(subset=["accuracy"]).sort_values(["batch_size", "bn_batch_size"])
    chosen = some.loc[some.groupby("batch_size")["accuracy"].idxmax()]
    return chosen.to_dict("records")


def _warnings(cells: pd.DataFrame) -> list[str]:
    lines: list[str] = []
    lost = int(cells["n_diverged"].sum())
    if lost:
        lines.append(f"{count(lost, 'run')} diverged: the η̃ of its m was at the limit there.")
    if int(cells["n_seeds"].min()) == 1:
        lines.append("Some cells have one seed only: differences may be chance.")
    return lines


def _table(cells: pd.DataFrame) -> Table:
    rows = [
        [
            str(row["batch_size"]),
            str(row["bn_batch_size"]),
            power_of_two(row["base_lr"]),
            percent(row["accuracy"]),
            spread(row["min_accuracy"], row["max_accuracy"]),
            f"{row['n_seeds'] - row['n_diverged']} of {row['n_seeds']}",
        ]
        for row in cells.sort_values(["batch_size", "bn_batch_size"]).to_dict("records")
    ]
    headers = (
        "SGD batch m",
        "BN batch",
        "η̃",
        "accuracy (median)",
        "worst … best seed",
        "seeds finished",
    )
    return Table("Every SGD batch size with every BN batch size.", headers, rows)
