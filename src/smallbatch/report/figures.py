"""The figures of the report: which rows each draws, its words, and its files as SVG and PNG."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import vl_convert

from smallbatch import durable
from smallbatch.analysis.cells import FRACTIONS
from smallbatch.analysis.frames import ADAMW, on_lr_axis
from smallbatch.report.labels import percent, power_of_two, rate_of, rates_of
from smallbatch.report.wording import convergence_sentence, range_sentence
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import pandas as pd

    from smallbatch.analysis.scaling import Scaling
    from smallbatch.report.charts import Kind
    from smallbatch.report.rows import Row

# The version of Vega-Lite for the files; the page has the one that comes with the library.
VEGA_LITE = "6.4"
ETA = "-eta"
"""Ends the names of the kinds for studies whose grid is of η."""
_WIDTH = 400  # pixels, of a figure that would otherwise fit its column
_FONT = "DejaVu Sans, Verdana, Arial, sans-serif"
_LOOK: dict[str, Any] = {
    "font": _FONT,
    "background": "white",
    "aria": False,  # the file's reader has the caption; a label for every mark is half the size
    "axis": {"gridColor": "#e2e2e2", "titleFontWeight": "normal"},
    "header": {"labelFont": _FONT},
    # Of several legends below a figure each has a row, as the page may be narrow.
    "legend": {"layout": {"bottom": {"direction": "vertical", "anchor": "start"}}},
    "view": {"stroke": "#d5d5d5"},
}


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        name: Its identifier on the page, and the name of its files in ``figures/``.
        kind: A key of `charts.kinds`.
        alt: What it shows, for readers who cannot see it.
        caption: How to read it.
        tables: What each table of the specification is: the name of a table of the page, and the
            values that its rows must have, by column.
    """

    name: str
    kind: str
    alt: str
    caption: str
    tables: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)


class Gallery:
    """Saves figures in one directory, as SVG and PNG.

    Args:
        directory: For the files.
        kinds: As `charts.kinds` makes them.
        tables: The rows of the page by table; may grow while figures are added.
    """

    def __init__(
        self, directory: Path, kinds: Mapping[str, Kind], tables: Mapping[str, list[Row]]
    ) -> None:
        self.directory = directory
        self.names: set[str] = set()
        self._kinds, self._tables = kinds, tables

    def add(self, figure: Figure) -> Figure:
        """Write the files of a figure, a pair for each of its variants that are saved."""
        kind = self._kinds[figure.kind]
        for variant in kind.saved:
            suffix = f"-{variant.replace('_', '-')}" if len(kind.saved) > 1 else ""
            spec = copy.deepcopy(kind.variants[variant])
            spec["datasets"] = {table: self._rows(*of) for table, of in figure.tables.items()}
            _widen(spec)
            self._save(f"{figure.name}{suffix}", spec)
        return figure

    def _rows(self, table: str, where: dict[str, Any]) -> list[Row]:
        return [
            row
            for row in self._tables[table]
            if all(row[name] == value for name, value in where.items())
        ]

    def _save(self, name: str, spec: dict[str, Any]) -> None:
        self.names.add(name)
        svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, config=_LOOK)
        durable.write(self.directory / f"{name}.svg", svg.encode())
        durable.write(self.directory / f"{name}.png", vl_convert.svg_to_png(svg, scale=1.5))


def plain_name(*parts: str) -> str:
    """A name for files and identifiers."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", ".".join(parts))


def study_figures(
    dataset: str,
    cells: pd.DataFrame,
    ranges: pd.DataFrame,
    curves: pd.DataFrame,
    *,
    fits: bool,
    band: bool,
    learned: bool,
    rules: Scaling | None = None,
) -> list[Figure]:
    """The figures of one study, the heat map first; all data frames are of that study alone.

    Args:
        dataset: The name of its data set.
        cells: As `summarise_cells` makes them.
        ranges: As `stable_ranges` makes them.
        curves: Convergence at one learning rate; empty if no run has a finite accuracy.
        fits: Whether the upper ends were fitted.
        band: Whether it is known how much the fit varies over resamples.
        rules: How the best η changes with m under AdamW, if it is known.
        learned: Whether anything is beyond chance; otherwise ranges mean nothing.
    """
    study = str(cells["study"].iloc[0])
    where = {"dataset": dataset, "study": study}

    def figure(kind: str, alt: str, caption: str, *tables: str, **more: Any) -> Figure:
        of = {name: ("cells" if name == "all" else name, {**where, **more}) for name in tables}
        return Figure(plain_name(dataset, study, kind.removesuffix(ETA)), kind, alt, caption, of)

    rate, adamw = rate_of(cells), on_lr_axis(cells)
    kind, eta = ("learning rate", ETA) if adamw else ("base learning rate", "")
    rates = count(cells["base_lr"].nunique(), kind)
    found = [
        figure(
            f"heat-map{eta}",
            f"Heat map: reported test accuracy of {study} for every batch size and {kind}; "
            f"{_diverged_text(cells)}.",
            f"Reported accuracy (%, median over seeds). ★: the answer; framed: the best {rate} of "
            "each m on the test set; ×: all seeds diverged, ×k: k of them.",
            "cells",
        ),
        figure(
            f"stable-range{eta}",
            f"Bar chart of the reliable learning rates of {study} at each batch size. "
            f"{range_sentence(ranges)}",
            "Learning rates that converge reliably, for the thresholds "
            f"{', '.join(f'{fraction:g}' for fraction in FRACTIONS)}; dots are reliable cells, a "
            "triangle means that the grid ends there"
            + (", dashed the fitted upper end" if fits else "")
            + (", shaded the middle 95 % of its resamples." if band else ".")
            + (_rules_caption(rules) if adamw else ""),
            "ranges", *(["rules"] if adamw else ["fit"]),
        ),
        figure(
            "accuracy",
            f"Line charts: reported test accuracy of {study} against the batch size, a frame for "
            f"each of {rates}.",
            f"Reported accuracy against m, a frame per {rate} (median over seeds), the other "
            f"{rate} in grey, chance dotted. A curve is interrupted where the median "
            f"falls on a diverged run, or the {rate} was not run.",
            "cells", "all",
        ),
    ]  # fmt: skip
    if adamw:  # with the best η of each m
        of = {**where, "best": True}
        found[1].tables["cells"] = ("cells", of)
    if not learned:
        found = [each for each in found if each.kind != "stable-range"]
    if len(curves):
        base_lr = float(curves["base_lr"].iloc[0])
        sizes = count(curves["batch_size"].nunique(), "batch size")
        for measure, words in (("test_accuracy", "test accuracy"), ("train_loss", "training loss")):
            if not curves[measure].notna().any():
                continue
            kind = f"convergence-{measure.replace('_', '-')}"
            rows: tuple[str, dict[str, Any]] = ("curves", where)
            found.append(
                Figure(
                    plain_name(dataset, study, kind),
                    kind,
                    f"Line charts: {words} of {study} against the epoch at {rate} = "
                    f"{power_of_two(base_lr)}, a frame for each of {sizes}.",
                    f"Convergence: {words} (median over seeds) at "
                    f"{convergence_sentence(base_lr, cells)}; the other m in grey. A cross: from "
                    "there on the median falls on a diverged run.",
                    {"curves": rows, "all": rows},
                )
            )
    return found


def summary_figures(
    name: str, where: dict[str, Any], cells: pd.DataFrame, best: pd.DataFrame
) -> list[Figure]:
    """The figures across studies (paper, Figs. 15 and 16).

    Args:
        name: Of what the studies are, such as a data set.
        where: The values that rows must have.
        cells: Of these studies.
        best: Their best cells.
    """
    n_studies = count(cells["study"].nunique(), "study", "studies")
    found: list[Figure] = []
    if len(best):
        winner = best.sort_values("accuracy").to_dict("records")[-1]
        rows = ("cells", {**where, "best": True})
        found.append(
            Figure(
                plain_name(name, "best-accuracy"),
                "best-accuracy",
                f"Line charts: best accuracy against the batch size for {n_studies} on {name}. The "
                f"highest is {percent(winner['accuracy'])}, {winner['study']} at "
                f"m = {winner['batch_size']}.",
                "Best reported accuracy at each m (median over seeds at the best "
                f"{rates_of(cells)}, chosen on the test set), a frame per study, the others in "
                "grey; bars reach from the worst seed to the best. A cross at the bottom: a seed "
                "diverged there.",
                {"cells": rows, "all": rows},
            )
        )
    eta = cells["optimizer"].eq(ADAMW)
    for kind, own in (("", cells[~eta]), (ETA, cells[eta])):
        if own.empty:
            continue
        n_studies = count(own["study"].nunique(), "study", "studies")
        of = {**where, "main": True, "eta": bool(kind)}
        found.append(
            Figure(
                plain_name(name, f"stable-range{kind}"),
                f"all-ranges{kind}",
                f"Bar charts: reliable learning rates against the batch size for {n_studies} on "
                f"{name}{', under AdamW' if kind else ''}.",
                f"Learning rates{' η under AdamW' if kind else ''} that converge reliably, a frame "
                "per study; dots are reliable cells, a triangle means that the grid ends there.",
                {"ranges": ("ranges", of)},
            )
        )
    return found


def _rules_caption(rules: Scaling | None) -> str:
    if rules is None:
        return " Rhombs: the best η of each m on the test set."
    return (
        " Rhombs: the best η of each m on the test set. For comparison the linear rule, η ∝ m, and "
        "the square-root rule, η ∝ √m, both through the best η of "
        f"m = {rules.batch_sizes[0]}, as far as the grid goes."
    )


def _widen(spec: Any) -> None:
    """Give a width to what would fit a column of the page."""
    for part in spec.values() if isinstance(spec, dict) else spec:
        if isinstance(part, (dict, list)):
            _widen(part)
    if isinstance(spec, dict) and spec.get("width") == "container":
        spec["width"] = _WIDTH


def _diverged_text(cells: pd.DataFrame) -> str:
    diverged = int((cells["n_diverged"] == cells["n_seeds"]).sum())
    partly = int((cells["n_diverged"] > 0).sum()) - diverged
    return f"all seeds diverged in {diverged} of {count(len(cells), 'cell')}, some in {partly}"


def remove_others(directory: Path, names: Iterable[str]) -> None:
    """Delete figures of an earlier report, such as those of studies that no longer exist."""
    kept = set(names)
    for path in directory.iterdir():
        if path.suffix in (".svg", ".png") and path.stem not in kept:
            path.unlink(missing_ok=True)  # another report may be at it
