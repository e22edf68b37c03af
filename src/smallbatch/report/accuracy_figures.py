"""Figures of accuracy: curves for each η̃, a heat map over m and η̃, best accuracy against m."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch, Rectangle

from smallbatch.analysis.cells import pivot
from smallbatch.report.labels import power_of_two
from smallbatch.report.style import (
    BEST,
    MARKERS,
    batch_size_axis,
    categorical,
    legend_columns,
    new_figure,
    ordered_colours,
    sideways,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from smallbatch.analysis.seeds import Floats

_ALL_DIVERGED = "#bdbdbd"
_MOST_DIVERGED = "#ececec"


def accuracy_curves(cells: pd.DataFrame) -> Figure:
    """Reported accuracy against m, a curve per η̃ (paper, Figs. 1-11); ``cells`` of one study."""
    figure, axes = new_figure()
    grid = pivot(cells)
    colours = ordered_colours(len(grid))
    for index, (base_lr, row) in enumerate(grid.iterrows()):
        axes.plot(
            np.log2(grid.columns.to_numpy(dtype=float)),
            100 * row.to_numpy(dtype=float),
            color=colours[index],
            marker=MARKERS[index % len(MARKERS)],
            label=power_of_two(float(str(base_lr))) + ("" if row.notna().any() else " ×"),
        )
    _chance_line(axes, cells)
    batch_size_axis(axes, cells["batch_size"])
    axes.set_ylabel("reported test accuracy (%)")
    labels = axes.get_legend_handles_labels()[1]
    figure.legend(
        loc="outside lower center", ncols=legend_columns(labels), title="base learning rate η̃"
    )
    return figure


def heat_map(cells: pd.DataFrame, best: pd.DataFrame) -> Figure:
    """Reported accuracy over the (m, η̃) grid of one study; diverged cells are marked.

    Args:
        cells: The cells of the study.
        best: The best cell of each m, which gets a frame.
    """
    figure, axes = new_figure((4.4, 4.1))
    batch_sizes = sorted(cells["batch_size"].unique())
    base_lrs = sorted(cells["base_lr"].unique())
    finite = cells["accuracy"].dropna()
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    scale = Normalize(100 * low, 100 * max(high, low + 0.01))
    colour_map = mpl.colormaps["viridis"]
    for cell in cells.to_dict("records"):
        corner = (batch_sizes.index(cell["batch_size"]), base_lrs.index(cell["base_lr"]))
        _draw_cell(axes, corner, cell, colour_map(scale(100 * cell["accuracy"])))
    for chosen in best.to_dict("records"):
        corner = (batch_sizes.index(chosen["batch_size"]), base_lrs.index(chosen["base_lr"]))
        frame = Rectangle(corner, 1, 1, fill=False, edgecolor=BEST, linewidth=2.2, zorder=3)
        axes.add_patch(frame)
    axes.set_xlim(0, len(batch_sizes))
    axes.set_ylim(0, len(base_lrs))
    axes.set_xticks(np.arange(len(batch_sizes)) + 0.5, [str(value) for value in batch_sizes])
    axes.set_yticks(np.arange(len(base_lrs)) + 0.5, [power_of_two(value) for value in base_lrs])
    axes.tick_params(length=0)
    if len(batch_sizes) > 9:
        axes.tick_params(axis="x", labelrotation=45)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("batch size m")
    axes.set_ylabel("base learning rate η̃")
    bar = figure.colorbar(ScalarMappable(scale, colour_map), ax=axes, shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("reported test accuracy (%)")
    figure.legend(handles=_heat_map_keys(cells), loc="outside lower center", ncols=2)
    return figure


def best_accuracy(best: pd.DataFrame, studies: list[str]) -> Figure:
    """Best accuracy against m, a curve per study (paper, Fig. 15); ``best`` of one data set.

    Points are medians over the seeds at the best η̃; bars as `seed_bars` draws them.
    """
    figure, axes = new_figure()
    for index, study in enumerate(studies):
        # A study has the same colour in all figures, so studies without a best cell count too.
        ordered = best[best["study"] == study].sort_values("batch_size")
        if ordered.empty:
            continue
        shift, look = sideways(index, len(studies), 0.09), categorical(index)
        at = np.log2(ordered["batch_size"].to_numpy(dtype=float)) + shift
        seed_bars(axes, at, ordered, label=study, **look)
    batch_size_axis(axes, best["batch_size"])
    axes.set_ylabel("best reported test accuracy (%)")
    figure.legend(loc="outside lower center", ncols=legend_columns(studies))
    return figure


def seed_bars(axes: Axes, at: Floats, cells: pd.DataFrame, *, color: Any, **look: Any) -> None:
    """Draw medians of cells, with bars from the worst seed to the best.

    A seed that diverged is the worst, and has no accuracy: instead of the bar's lower half there is
    a cross on the axis.

    Args:
        axes: Where to draw.
        at: The position of each cell.
        cells: The cells, with ``accuracy``, ``min_accuracy`` and ``max_accuracy``.
        color: Of all parts.
        look: Other options of the line.
    """
    middle, low, high = (
        100 * cells[name].to_numpy(dtype=float)
        for name in ("accuracy", "min_accuracy", "max_accuracy")
    )
    bars = np.nan_to_num(np.stack([middle - low, high - middle]))
    axes.errorbar(at, middle, yerr=bars, color=color, capsize=2.5, elinewidth=1, **look)
    lost = at[np.isnan(low) & ~np.isnan(middle)]
    if len(lost):
        floor, on_axis = np.zeros(len(lost)), axes.get_xaxis_transform()
        axes.plot(lost, floor, "x", color=color, mew=1.5, transform=on_axis, clip_on=False)


def _chance_line(axes: Axes, cells: pd.DataFrame) -> None:
    chance = float(cells["chance"].iloc[0])
    axes.axhline(100 * chance, color="#707070", linewidth=1, linestyle=":", label="chance")


def _draw_cell(
    axes: Axes, corner: tuple[int, int], cell: dict[Any, Any], colour: tuple[float, ...]
) -> None:
    """Draw one cell: colour and number, and a cross with the number of diverged seeds."""
    accuracy, n_diverged = 100 * cell["accuracy"], cell["n_diverged"]
    all_diverged = n_diverged == cell["n_seeds"]
    place: dict[str, Any] = {"x": corner[0] + 0.5, "ha": "center", "va": "center"}
    middle = corner[1] + 0.5
    if np.isnan(accuracy):
        grey = _ALL_DIVERGED if all_diverged else _MOST_DIVERGED
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=grey, edgecolor="white"))
        text = "×" if all_diverged else f"×{n_diverged}"
        axes.text(y=middle, s=text, color="#303030", fontsize=8.5, **place)
        return
    axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white"))
    place["color"] = "white" if _is_dark(colour) else "black"
    axes.text(y=middle + (0.12 if n_diverged else 0), s=f"{accuracy:.0f}", fontsize=8, **place)
    if n_diverged:
        axes.text(y=middle - 0.27, s=f"×{n_diverged}", fontsize=6.5, **place)


def _is_dark(colour: tuple[float, ...]) -> bool:
    """Whether white text is easier to read than black (by WCAG's relative luminance)."""
    channels = np.asarray(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722])) < 0.18


def _heat_map_keys(cells: pd.DataFrame) -> list[Patch]:
    keys = [Patch(facecolor="none", edgecolor=BEST, linewidth=2, label="best η̃ of this m")]
    if (cells["n_diverged"] == cells["n_seeds"]).any():
        keys.append(Patch(facecolor=_ALL_DIVERGED, label="× all seeds diverged"))
    partly = (cells["n_diverged"] > 0) & (cells["n_diverged"] < cells["n_seeds"])
    if partly.any():
        keys.append(Patch(facecolor=_MOST_DIVERGED, label="×k: k of the seeds diverged"))
    return keys
