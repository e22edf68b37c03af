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
    legend_columns,
    new_figure,
    ordered_colours,
    sideways,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from smallbatch.analysis.limit_band import LimitBand
    from smallbatch.analysis.stability import LimitFit

_AXIS = {"base_lr": "base learning rate η̃", "lr": "learning rate η = m·η̃"}


def study_ranges(
    ranges: pd.DataFrame,
    cells: pd.DataFrame,
    fit: LimitFit | None,
    band: LimitBand | None,
    unit: str,
) -> Figure:
    """Draw one study's reliable range against m, at every fraction of the way to its best cell.

    Args:
        ranges: The ranges of the study, at all fractions.
        cells: The cells of the study.
        fit: The fit of the upper ends at the main fraction; drawn as a dashed line.
        band: How it varies between resamples of the seeds; drawn as a shade.
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
    if band is not None:
        shift = np.log2(band.batch_sizes) if unit == "lr" else 0.0
        ends = np.log2(band.low) + shift, np.log2(band.high) + shift
        shade: dict[str, Any] = {"color": "#202020", "alpha": 0.12, "linewidth": 0}
        axes.fill_between(np.log2(band.batch_sizes), *ends, **shade)
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


def all_ranges(ranges: pd.DataFrame, cells: pd.DataFrame, studies: list[str], unit: str) -> Figure:
    """Draw all studies' ranges of one data set side by side, at the main fraction."""
    figure, axes = new_figure()
    keys: list[Line2D] = []
    main = ranges[ranges["fraction"] == MAIN_FRACTION]
    for index, study in enumerate(studies):
        style: dict[str, Any] = categorical(index)
        style["linewidth"] = max(1.2, min(2.8, 9.8 / len(studies)))
        own_cells = cells[cells["study"] == study]
        offset = sideways(index, len(studies), 0.2)
        _bars(axes, main[main["study"] == study], own_cells, offset, unit, style)
        keys.append(Line2D([], [], label=study, **style))
    _finish(axes, cells, unit)
    figure.legend(handles=keys, loc="outside lower center", ncols=legend_columns(studies))
    return figure


def _bars(
    axes: Axes,
    ranges: pd.DataFrame,
    cells: pd.DataFrame,
    offset: float,
    unit: str,
    style: dict[str, Any],
) -> None:
    """Draw a bar per m with a dot at each reliable η̃, and an open arrow where the grid ends.

    ``ranges`` are those of one study at one fraction. Only the main fraction has arrows.
    """
    found = ranges[ranges["n_reliable"] > 0]
    x = np.log2(found["batch_size"].to_numpy(dtype=float)) + offset
    suffix = "_lr" if unit == "lr" else ""
    low = np.log2(found[f"lower{suffix}"].to_numpy(dtype=float))
    high = np.log2(found[f"upper{suffix}"].to_numpy(dtype=float))
    axes.vlines(
        x,
        low,
        high,
        color=style["color"],
        linewidth=style["linewidth"],
        alpha=0.55,
        linestyles=style.get("linestyle", "-"),
    )
    dots = cells.merge(found[["batch_size", "lower", "upper", "holes"]], on="batch_size")
    dots = dots[np.array([_inside(row) for row in dots.to_dict("records")], dtype=bool)]
    axes.plot(
        np.log2(dots["batch_size"].to_numpy(dtype=float)) + offset,
        np.log2(dots[unit].to_numpy(dtype=float)),
        linestyle="none",
        marker=style.get("marker", "o"),
        markersize=max(2.5, min(4.5, 1.1 * style["linewidth"])),
        color=style["color"],
    )
    if not (found["fraction"] == MAIN_FRACTION).all():
        return
    for limit, ends, step, marker in (
        ("upper_limit", high, 0.33, "^"),
        ("lower_limit", low, -0.33, "v"),
    ):
        edge = (found[limit] == EDGE).to_numpy()
        arrow: dict[str, Any] = {"color": "#202020", "markerfacecolor": "white", "markersize": 5}
        axes.plot(x[edge], ends[edge] + step, linestyle="none", marker=marker, **arrow)


def _inside(row: dict[Any, Any]) -> bool:
    return row["lower"] <= row["base_lr"] <= row["upper"] and row["base_lr"] not in row["holes"]


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
