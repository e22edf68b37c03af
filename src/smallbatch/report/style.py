"""The style of all figures, and saving them so that the same data give the same bytes."""

from __future__ import annotations

import contextlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from smallbatch import durable
from smallbatch.report.labels import SUPERSCRIPTS, power_of_two

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from matplotlib.axes import Axes

# Inches; narrow enough for 9 pt text to be legible at the width of a phone.
SIZE = (4.4, 3.7)
# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow would be too faint.
CATEGORICAL = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKERS = "osD^vP*X"
BEST = "#d62728"
# The colours of an ordered series come from viridis without its faintest end.
_VIRIDIS_END = 0.88

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "figure.facecolor": "white",
    # Text is stored as text, so that the file is small and can be searched.
    "svg.fonttype": "none",
    # With a fixed salt the ids in an SVG are the same every time.
    "svg.hashsalt": "smallbatch",
    "path.simplify": True,
}


@contextlib.contextmanager
def figure_style() -> Generator[None]:
    """Use the report's style for drawing and saving, whatever the user's matplotlib settings."""
    with mpl.rc_context():
        mpl.rcdefaults()
        for key, value in _RC.items():
            mpl.rcParams[key] = value
        yield


def new_figure(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes; the layout keeps labels inside."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def save(figure: Figure, stem: Path) -> None:
    """Write ``<stem>.svg`` and ``<stem>.png``, without a date in either."""
    kinds: dict[str, dict[str, Any]] = {
        "svg": {"metadata": {"Date": None, "Creator": None}},
        "png": {"metadata": {"Software": None}, "dpi": 160},
    }
    for kind, options in kinds.items():
        picture = BytesIO()
        figure.savefig(picture, format=kind, **options)
        durable.write(stem.with_name(f"{stem.name}.{kind}"), picture.getvalue())


def ordered_colours(count: int) -> list[str]:
    """Colours for an ordered series (base learning rates, batch sizes), dark to light."""
    viridis = mpl.colormaps["viridis"]
    return [to_hex(viridis(position)) for position in np.linspace(0, _VIRIDIS_END, count)]


def categorical(index: int) -> dict[str, Any]:
    """Colour, marker and line of the index-th of several unordered things."""
    return {
        "color": CATEGORICAL[index % len(CATEGORICAL)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "-" if index < len(CATEGORICAL) else "--",
    }


def sideways(index: int, count: int, step: float) -> float:
    """Octaves by which the index-th of several things at a batch size is moved sideways.

    Otherwise they would hide each other. They stay close enough to their own batch size.
    """
    return min(step, 0.66 / count) * (index - (count - 1) / 2)


def legend_columns(labels: Iterable[str]) -> int:
    """How many legend entries fit side by side under a figure of the usual size."""
    # A superscript is half as wide as a letter.
    lengths = [len(label) - 0.5 * sum(sign in SUPERSCRIPTS for sign in label) for label in labels]
    # In points: a letter of 8 pt type is about 5 wide, a handle with its gaps about 34.
    fitting = int(72 * SIZE[0] // (5 * max(lengths) + 34))
    return max(1, min(fitting, len(lengths)))


def batch_size_axis(axes: Axes, batch_sizes: Iterable[int], margin: float = 0.4) -> None:
    """Put log2 of the batch sizes on x; the labels are the batch sizes themselves."""
    values = sorted(set(batch_sizes))
    positions = np.log2(values)
    axes.set_xticks(positions, [str(value) for value in values])
    axes.set_xlim(positions[0] - margin, positions[-1] + margin)
    axes.set_xlabel("batch size m (log₂ scale)")


def learning_rate_ticks(axes: Axes, lowest: float, highest: float) -> None:
    """Put log2 of a learning rate on y; the labels are 2ᵏ at every octave or every few."""
    bottom, top = int(np.floor(np.log2(lowest))), int(np.ceil(np.log2(highest)))
    step = 1 + (top - bottom) // 12
    ticks = np.arange(-(-bottom // step) * step, top + 1, step)
    axes.set_yticks(ticks, [power_of_two(2.0 ** float(tick)) for tick in ticks])
    axes.set_ylim(bottom - 0.5, top + 0.5)
