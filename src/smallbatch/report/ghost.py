"""The report's section on a study of BN batch and SGD batch sizes (paper, Figs. 13 and 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smallbatch.report import ghost_words, paper
from smallbatch.report.figures import Figure, plain_name
from smallbatch.report.settings import settings_table
from smallbatch.text import count

if TYPE_CHECKING:
    import pandas as pd


def ghost_section(cells: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Any]:
    """The figure and texts of one such study.

    Args:
        cells: The cells of the study, as `analysis.ghost.bn_cells` makes them.
        runs: The runs of the study.
    """
    study = str(cells["study"].iloc[0])
    figure = runs["figure"].iloc[0]
    dataset = str(cells["dataset"].iloc[0])
    rows = ("bn_cells", {"dataset": dataset, "study": study})
    curves = Figure(
        plain_name(dataset, study, "bn-batch"),
        "bn-batch",
        f"Line charts: reported test accuracy of {study} against the BN batch size, a frame for "
        f"each of {count(cells['batch_size'].nunique(), 'SGD batch size')}.",
        "Reported accuracy against the BN batch size, a frame per SGD batch size m (median over "
        "seeds; bars from the worst seed to the best), the other m in grey. A cross at the bottom: "
        "a seed diverged there.",
        {"cells": rows, "all": rows},
    )
    return {
        "dataset": dataset,
        "name": study,
        "paper": paper.paper_figure(figure if isinstance(figure, str) else None),
        "sentences": [ghost_words.best_sentence(cells, runs), ghost_words.base_lr_sentence(runs)],
        "warnings": ghost_words.warnings(cells),
        "figures": [curves],
        "tables": [settings_table(runs), ghost_words.cells_table(cells)],
    }
