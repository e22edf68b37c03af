"""Draws every figure into ``figures/`` and gives the page its image, title and text."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smallbatch.analysis.cells import FRACTIONS
from smallbatch.report import accuracy_figures, convergence_figures, range_figures
from smallbatch.report.labels import count, percent, power_of_two
from smallbatch.report.style import figure_style, save
from smallbatch.report.wording import convergence_sentence, range_sentence

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from smallbatch.analysis.limit_band import LimitBand
    from smallbatch.analysis.stability import LimitFit


@dataclass(frozen=True)
class Picture:
    """A figure on the page.

    Attributes:
        name: The name of its files in ``figures/``, without suffix.
        alt: What it shows, for readers who cannot see it.
        caption: How to read it.
        data_uri: The SVG, embedded.
    """

    name: str
    alt: str
    caption: str
    data_uri: str


class Gallery:
    """Saves figures in one directory, as SVG and PNG."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add(self, figure: Figure, name: str, alt: str, caption: str) -> Picture:
        """Save a figure and return it in the form that the page embeds."""
        stem = self.directory / re.sub(r"[^A-Za-z0-9._-]", "-", name)
        save(figure, stem)
        svg = stem.with_name(stem.name + ".svg").read_text(encoding="utf-8")
        # Headers, metadata and indentation are of no use inside a page.
        body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        body = re.sub(r"\s*\n\s*", " ", body).replace("> <", "><")
        encoded = base64.b64encode(body.encode()).decode()
        return Picture(stem.name, alt, caption, f"data:image/svg+xml;base64,{encoded}")


def study_pictures(
    gallery: Gallery,
    name: str,
    cells: pd.DataFrame,
    best: pd.DataFrame,
    ranges: pd.DataFrame,
    curves: pd.DataFrame,
    fit: LimitFit | None,
    band: LimitBand | None,
) -> list[Picture]:
    """Draw the figures of one study; all data frames are of that study alone.

    Args:
        gallery: Saves the figures.
        name: The beginning of the file names: data set and study.
        cells: As `summarise_cells` makes them.
        best: The best cell of each m, chosen on the test set.
        ranges: As `stable_ranges` makes them.
        curves: Convergence at one η̃; empty if no run has a finite accuracy.
        fit: The fit of the upper ends at the main fraction, if there are enough.
        band: How it varies between resamples, if there are enough seeds.
    """
    study = str(cells["study"].iloc[0])
    with figure_style():
        pictures = [
            gallery.add(
                accuracy_figures.accuracy_curves(cells),
                f"{name}.accuracy",
                f"Line chart: reported test accuracy of {study} against the batch size, one curve "
                f"for each of {count(cells['base_lr'].nunique(), 'base learning rate')}.",
                "Reported accuracy against m, a curve per η̃ (median over seeds). A curve is "
                "interrupted where the median falls on a diverged run, or the η̃ was not run (× in "
                "the key: wherever it was run, it diverged).",
            ),
            gallery.add(
                accuracy_figures.heat_map(cells, best),
                f"{name}.heat-map",
                f"Heat map: reported test accuracy of {study} for every batch size and base "
                f"learning rate; {_diverged_text(cells)}.",
                "Reported accuracy (%, median over seeds) of every cell. Grey: the median falls on "
                "a diverged run.",
            ),
        ]
        for unit, symbol in (("base_lr", "η̃"), ("lr", "η = m·η̃")):
            pictures.append(
                gallery.add(
                    range_figures.study_ranges(ranges, cells, fit, band, unit),
                    f"{name}.stable-range-{unit.replace('_', '-')}",
                    f"Bar chart of the reliable range of {symbol} of {study} at each batch size. "
                    f"{range_sentence(ranges)}",
                    f"Range of {symbol} that converges reliably, for the thresholds "
                    f"{', '.join(f'{fraction:g}' for fraction in FRACTIONS)}; dots are reliable "
                    "cells, an arrow means that the grid ends there"
                    + (", dashed the fitted upper end" if fit else "")
                    + (" with the middle 95 % of resamples of the seeds." if band else "."),
                )
            )
        if len(curves):
            pictures += _convergence_pictures(gallery, name, cells, curves)
    return pictures


def summary_pictures(
    gallery: Gallery, dataset: str, cells: pd.DataFrame, best: pd.DataFrame, ranges: pd.DataFrame
) -> list[Picture]:
    """Draw the figures across all studies of one data set (paper, Figs. 15 and 16)."""
    studies: list[str] = sorted(cells["study"].unique())
    n_studies = count(len(studies), "study", "studies")
    pictures: list[Picture] = []
    with figure_style():
        if len(best):
            winner = best.sort_values("accuracy").to_dict("records")[-1]
            pictures.append(
                gallery.add(
                    accuracy_figures.best_accuracy(best, studies),
                    f"{dataset}.best-accuracy",
                    f"Line chart: best accuracy against the batch size for {n_studies} on "
                    f"{dataset}. The highest is {percent(winner['accuracy'])}, "
                    f"{winner['study']} at m = {winner['batch_size']}.",
                    "Best reported accuracy at each m (median over seeds at the best η̃, chosen on "
                    "the test set); bars reach from the worst seed to the best. A cross on the "
                    "axis: a seed diverged there.",
                )
            )
        for unit, symbol in (("base_lr", "η̃"), ("lr", "η = m·η̃")):
            pictures.append(
                gallery.add(
                    range_figures.all_ranges(ranges, cells, studies, unit),
                    f"{dataset}.stable-range-{unit.replace('_', '-')}",
                    f"Bar chart: reliable range of {symbol} against the batch size for {n_studies}"
                    f" on {dataset}.",
                    f"Range of {symbol} that converges reliably, all studies side by side; markers "
                    "are reliable cells, an arrow means that the grid ends there.",
                )
            )
    return pictures


def _convergence_pictures(
    gallery: Gallery, name: str, cells: pd.DataFrame, curves: pd.DataFrame
) -> list[Picture]:
    base_lr = float(curves["base_lr"].iloc[0])
    why = convergence_sentence(base_lr, cells)
    study = str(cells["study"].iloc[0])
    return [
        gallery.add(
            convergence_figures.convergence(curves, measure),
            f"{name}.convergence-{measure.replace('_', '-')}",
            f"Line chart: {words} of {study} against the epoch at η̃ = {power_of_two(base_lr)}, "
            f"one curve for each of {count(curves['batch_size'].nunique(), 'batch size')}.",
            f"Convergence: {words} by epoch (median over seeds) at {why}. A cross: diverged "
            "(a loss beyond the axis is drawn on its edge).",
        )
        for measure, words in (("test_accuracy", "test accuracy"), ("train_loss", "training loss"))
        if curves[measure].notna().any()
    ]


def _diverged_text(cells: pd.DataFrame) -> str:
    diverged = int((cells["n_diverged"] == cells["n_seeds"]).sum())
    partly = int((cells["n_diverged"] > 0).sum()) - diverged
    return f"all seeds diverged in {diverged} of {len(cells)} cells, some in {partly}"
