"""Figures of the range of base learning rates that converges reliably (paper, Fig. 16)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D

from smallbatch.analysis.cells import FRACTIONS, MAIN_FRACTION
from smallbatch.analysis.stability import EDGE
from smallbatch.report.style import (
    batch_size_axis,
    categorical,
    learning_rate_ticks,
    new_figure,
    ordered_colours,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from smallbatch.analysis.stability import LimitFit

_AXIS = {"base_lr": "base learning rate η̃", "lr": "learning rate η = m·η̃"}


def study_ranges(
    ranges: pd.DataFrame, cells: pd.DataFrame, fit: LimitFit | None, unit: str
) -> Figure:
    """Draw one study's reliable range against m, at every fraction of the way to its best cell.

    Args:
        ranges: of one study, all fractions.
        cells: of the same study.
        fit: of the upper ends at the main fraction; drawn as a dashed line.
        unit: "base_lr" draws η̃, "lr" draws η = m·η̃.
    """
    figure, axes = new_figure()
    colours = dict(zip(FRACTIONS, reversed(ordered_colours(len(FRACTIONS))), strict=True))
    keys: list[Line2D] = []
    for index, fraction in enumerate(FRACTIONS):
        main = fraction == MAIN_FRACTION
        style: dict[str, Any] = {"color": colours[fraction], "linewidth": 4.5 if main else 1.8}
        offset = 0.17 * (index - (len(FRACTIONS) - 1) / 2)
        _bars(axes, ranges[ranges["fraction"] == fraction], cells, offset, unit, style)
        keys.append(Line2D([], [], label=f"{fraction:g}" + (" (main)" if main else ""), **style))
    if fit is not None:
        keys.append(_fit_line(axes, fit, ranges, unit))
    _finish(axes, cells, unit)
    figure.legend(
        handles=keys,
        loc="outside lower center",
        ncols=len(keys),
        title="fraction of the way from chance to the best cell",
    )
    return figure


def all_ranges(ranges: pd.DataFrame, cells: pd.DataFrame, unit: str) -> Figure:
    """Draw all studies' ranges of one data set side by side, at the main fraction."""
    figure, axes = new_figure()
    studies = sorted(cells["study"].unique())
    step = min(0.2, 0.7 / len(studies))
    keys: list[Line2D] = []
    main = ranges[ranges["fraction"] == MAIN_FRACTION]
    for index, study in enumerate(studies):
        colour, marker = categorical(index)
        style: dict[str, Any] = {
            "color": colour,
            "linewidth": max(1.2, min(4.0, 14 * step)),
            "marker": marker,
        }
        own_cells = cells[cells["study"] == study]
        offset = step * (index - (len(studies) - 1) / 2)
        _bars(axes, main[main["study"] == study], own_cells, offset, unit, style)
        keys.append(Line2D([], [], label=study, **style))
    _finish(axes, cells, unit)
    figure.legend(handles=keys, loc="outside lower center", ncols=min(3, len(keys)))
    return figure


def _bars(
    axes: Axes,
    ranges: pd.DataFrame,
    cells: pd.DataFrame,
    offset: float,
    unit: str,
    style: dict[str, Any],
) -> None:
    """Draw a bar per m with a dot at each reliable η̃, and an open arrow where the grid ends."""
    fraction = ranges["fraction"].iloc[0] if len(ranges) else MAIN_FRACTION
    colour, width = style["color"], style["linewidth"]
    for row in ranges[ranges["n_reliable"] > 0].to_dict("records"):
        batch_size = row["batch_size"]
        x = np.log2(batch_size) + offset
        scale = batch_size if unit == "lr" else 1
        low, high = np.log2(scale * row["lower"]), np.log2(scale * row["upper"])
        axes.plot([x, x], [low, high], color=colour, linewidth=width, alpha=0.55)
        column = cells[cells["batch_size"] == batch_size]
        good = [value for value in column["base_lr"] if _inside(row, value)]
        axes.plot(
            np.full(len(good), x),
            np.log2(np.array(good) * scale),
            linestyle="none",
            marker=style.get("marker", "o"),
            markersize=max(2.5, min(4.5, 1.1 * width)),
            color=colour,
        )
        if fraction != MAIN_FRACTION:
            continue
        arrow: dict[str, Any] = {"color": "#202020", "linestyle": "none", "markersize": 5}
        if row["upper_limit"] == EDGE:
            axes.plot([x], [high + 0.33], marker="^", markerfacecolor="white", **arrow)
        if row["lower_limit"] == EDGE:
            axes.plot([x], [low - 0.33], marker="v", markerfacecolor="white", **arrow)


def _inside(row: dict[Any, Any], base_lr: float) -> bool:
    return row["lower"] <= base_lr <= row["upper"] and base_lr not in row["holes"]


def _fit_line(axes: Axes, fit: LimitFit, ranges: pd.DataFrame, unit: str) -> Line2D:
    batch_sizes = ranges["batch_size"]
    x = np.linspace(np.log2(batch_sizes.min()), np.log2(batch_sizes.max()), 100)
    limit = fit(2.0**x) * (2.0**x if unit == "lr" else 1.0)
    (line,) = axes.plot(
        x, np.log2(limit), color="#202020", linestyle="--", linewidth=1.1, label="fit"
    )
    return line


def _finish(axes: Axes, cells: pd.DataFrame, unit: str) -> None:
    batch_size_axis(axes, cells["batch_size"], margin=0.5)
    values = cells["base_lr"] * (cells["batch_size"] if unit == "lr" else 1)
    learning_rate_ticks(axes, float(values.min()), float(values.max()))
    axes.set_ylabel(f"{_AXIS[unit]} (log₂ scale)")
