"""The report's section on a study of BN batch and SGD batch sizes (paper, Figs. 13 and 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from smallbatch.report import ghost_words, paper
from smallbatch.report.accuracy_figures import seed_bars
from smallbatch.report.labels import count
from smallbatch.report.settings import settings_table
from smallbatch.report.style import (
    MARKERS,
    batch_size_axis,
    figure_style,
    legend_columns,
    new_figure,
    ordered_colours,
)

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
    study = str(cells["study"].iloc[0])
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
    return {
        "dataset": str(cells["dataset"].iloc[0]),
        "name": study,
        "paper": paper.paper_figure(figure if isinstance(figure, str) else None),
        "best": ghost_words.best_sentence(cells, runs),
        "range": "",
        "fit": ghost_words.base_lr_sentence(runs),
        "warnings": ghost_words.warnings(cells),
        "pictures": [picture],
        "tables": [settings_table(runs), ghost_words.cells_table(cells)],
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
