"""The report's section on a study of BN batch and SGD batch sizes (paper, Figs. 13 and 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smallbatch.report import paper
from smallbatch.report.figures import Figure, plain_name
from smallbatch.report.labels import count, listed, percent, power_of_two, spread
from smallbatch.report.tables import Table, settings_table

if TYPE_CHECKING:
    import pandas as pd


def ghost_section(cells: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Any]:
    """The figure and texts of one such study.

    Args:
        cells: The cells of the study, as `analysis.ghost.bn_cells` makes them.
        runs: The runs of the study.
    """
    study, source = str(cells["study"].iloc[0]), runs["base_lr_from"].iloc[0]
    best = _best_by_sgd_batch(cells)
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
    chosen = [f"{row['bn_batch_size']} at m = {row['batch_size']}" for row in best]
    return {
        "dataset": dataset,
        "name": study,
        "paper": paper.paper_figure(figure if isinstance(figure, str) else None),
        "sentences": [
            f"Best BN batch size: {listed(chosen)}." if chosen else "Every run diverged.",
            f"Each m was trained at the η̃ that was best for it in {source} (chosen on the test "
            "set)."
            if isinstance(source, str)
            else "Each m was trained at the η̃ of the study's own grid; of several, the best one is "
            "shown (chosen on the test set).",
        ],
        "warnings": _warnings(cells),
        "figures": [curves],
        "tables": [settings_table(runs), _table(cells)],
    }


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
