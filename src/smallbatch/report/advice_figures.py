"""The two pictures on the page of `smallbatch advise`, as SVG to stand inside it.

Every colour is one of `COLOURS`, for which the page's style has another on a dark page.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import altair as alt
import vl_convert

from smallbatch.report.advice_places import BESIDE, Frame, place_names
from smallbatch.report.advice_words import is_recommended, rate_name
from smallbatch.report.charts import BEST, GREY, INK
from smallbatch.report.figures import VEGA_LITE
from smallbatch.report.labels import power_of_two

if TYPE_CHECKING:
    from smallbatch.analysis.advice import Advice, Raced

    _Row = dict[str, Any]

WIDTHS = {"wide": 640, "narrow": 340}
"""Pixels of a whole picture: it is drawn for a screen and for a phone, where text stays legible."""

TEXT, LINE, FRAME = "#1a1a1a", "#e2e2e2", "#d5d5d5"
COLOURS = (TEXT, LINE, FRAME, INK, BEST, GREY)

_HEIGHT = 300
_LOOK: dict[str, Any] = {
    "font": "DejaVu Sans, Verdana, Arial, sans-serif",
    "background": None,
    "aria": False,  # the element around it says what it shows
    "axis": {
        "gridColor": LINE, "tickColor": FRAME, "domainColor": FRAME, "labelColor": TEXT,
        "titleColor": TEXT, "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12,
    },
    "view": {"stroke": FRAME},
}  # fmt: skip
_WIDE = 6.0  # longest over shortest training, from which on time is on a log axis
_AXIS, _LABEL = 52, 98  # pixels left of the frame, and right of it for labels
CHOSEN = "recommended"
_UNITS = (("hours", 3600.0), ("minutes", 60.0))


def shown_cells(advice: Advice) -> list[Raced]:
    """Of each batch size, ascending, the recommended cell or else the best that has a curve."""
    found: dict[int, Raced] = {}
    for cell in sorted(advice.raced, key=lambda it: not is_recommended(advice, it)):
        if cell.curve:
            found.setdefault(cell.batch_size, cell)
    return [found[m] for m in sorted(found)]


def accuracy_figure(advice: Advice, width: int) -> str:
    """Validation accuracy against the time of one training, a curve per batch size.

    Args:
        advice: What was found; at least one cell has a curve.
        width: Pixels.
    """
    cells = shown_cells(advice)
    unit, size = _unit(max(cell.seconds * len(cell.curve) / advice.epochs for cell in cells))
    rows: list[_Row] = [
        {
            "m": f"{cell.batch_size}", "time": cell.seconds * (i + 1) / advice.epochs / size,
            "accuracy": 100 * accuracy, "kind": _kind(advice, cell),
        }
        for cell in cells for i, accuracy in enumerate(cell.curve)
    ]  # fmt: skip
    longest = [cell.seconds for cell in cells]
    log = max(longest) > _WIDE * min(longest)
    times = [row["time"] for row in rows]
    values = [row["accuracy"] for row in rows]
    margin = max(1.0, 0.06 * (max(values) - min(values)))
    heights = (min(values) - margin, min(100.0, max(values) + margin))
    span = (min(times) / 1.1, max(times) * 1.05) if log else (0.0, max(times) * 1.02)
    frame = Frame(width - _AXIS - _LABEL, _HEIGHT, _LABEL, span, heights, log)
    ends = _ends(advice, cells, rows, frame)
    scale = alt.Scale(type="log" if log else "linear", domain=list(span), nice=False)
    x = alt.X(
        "time:Q", scale=scale, title=f"{unit} of one training{' (log scale)' if log else ''}",
        axis=alt.Axis(grid=False, tickCount=4, format=",~r", labelOverlap=True),
    )  # fmt: skip
    y, height = (
        alt.Y(
            f"{field}:Q", scale=alt.Scale(domain=list(heights), nice=False),
            title="validation accuracy (%)", axis=alt.Axis(tickCount=6),
        )
        for field in ("accuracy", "height")
    )  # fmt: skip
    layers = [*_curves(rows, ends, x, y), *_names(ends, x, height)]
    return _svg(alt.layer(*layers).properties(width=frame.width, height=_HEIGHT))


def range_figure(advice: Advice, width: int) -> str:
    """The learning rates tried at each batch size, which of them survived, and the best.

    Args:
        advice: What was found; at least one batch size was tried.
        width: Pixels.
    """
    tried: list[_Row] = [
        {
            "m": f"{own.batch_size}", "k": math.log2(rate),
            "outcome": "all" if seeds == own.seeds else "some" if seeds else "none",
        }
        for own in advice.ranges for rate, seeds in own.survived
    ]  # fmt: skip
    bars: list[_Row] = [
        {"m": f"{own.batch_size}", "low": math.log2(own.lowest), "k": math.log2(own.edge),
         "open": own.breaks is None}
        for own in advice.ranges if own.edge is not None
    ]  # fmt: skip
    best: list[_Row] = [
        {"m": f"{own.batch_size}", "k": math.log2(own.best)} for own in advice.ranges if own.best
    ]
    found = advice.recommended
    chosen: list[_Row] = (
        [{"m": f"{found.batch_size}", "k": math.log2(found.base_lr)}] if found else []
    )
    heights = [row["k"] for row in (*tried, *bars, *best, *chosen)]
    heights = [*heights, *(row["low"] for row in bars)] or [0.0]
    low, high = math.floor(min(heights)) - 1, math.ceil(max(heights)) + 1
    sizes = {own.batch_size for own in advice.ranges} | ({found.batch_size} if found else set())
    order = [f"{m}" for m in sorted(sizes)]
    x = alt.X(
        "m:N", scale=alt.Scale(domain=order), title="batch size m",
        axis=alt.Axis(labelAngle=0, labelOverlap=True, grid=False),
    )  # fmt: skip
    step = max(1, math.ceil((high - low) / 10))
    ticks = list(range(low, high + 1, step))
    names = "{" + ",".join(f"'{k}':'{power_of_two(2.0**k)}'" for k in ticks) + "}[datum.value]"
    title = "learning rate η" if rate_name(advice) == "η" else "base learning rate η̃"
    y, lowest = (
        alt.Y(
            f"{field}:Q", scale=alt.Scale(domain=[low, high], nice=False), title=title,
            axis=alt.Axis(values=ticks, labelExpr=names),
        )
        for field in ("k", "low")
    )  # fmt: skip
    ranges = alt.Chart(alt.Data(values=bars))
    points = alt.Chart(alt.Data(values=tried))
    layers: list[Any] = [
        ranges.mark_rule(color=INK, strokeWidth=5, opacity=0.35).encode(x=x, y=lowest, y2="k:Q"),
        ranges.transform_filter("!datum.open")
        .mark_tick(color=INK, thickness=3, width=20, orient="horizontal", opacity=1)
        .encode(x=x, y=y),
        ranges.transform_filter("datum.open")
        .mark_point(shape="triangle-up", color=INK, size=45, yOffset=-11, opacity=1)
        .encode(x=x, y=y),
    ]
    for outcome, look in _OUTCOMES.items():
        own = points.transform_filter(f"datum.outcome === '{outcome}'")
        layers.append(own.mark_point(**look, opacity=1).encode(x=x, y=y))
    for rows, filled in ((best, False), (chosen, True)):
        rhomb = alt.Chart(alt.Data(values=rows)).mark_point(
            shape="diamond", color=BEST, filled=filled, size=150, strokeWidth=2, opacity=1
        )
        layers.append(rhomb.encode(x=x, y=y))
    narrow = min(width - _AXIS - 10, max(180, 70 * len(order)))
    return _svg(alt.layer(*layers).properties(width=narrow, height=_HEIGHT))


_STROKES: dict[str, tuple[str, float]] = {  # the last is drawn on top
    "other": (GREY, 1.3), "tied": (INK, 1.8), CHOSEN: (BEST, 3.2),
}  # fmt: skip
_ENDS: dict[str, dict[str, Any]] = {
    "whole": {"filled": True, "size": 45},
    "stopped": {"filled": False, "size": 45, "strokeWidth": 1.8},
    "diverged": {"shape": "cross", "angle": 45, "filled": True, "size": 80},
}
_OUTCOMES: dict[str, dict[str, Any]] = {
    "all": {"filled": True, "size": 34, "color": INK},
    "some": {"filled": False, "size": 40, "color": TEXT, "strokeWidth": 1.5},
    "none": {"shape": "cross", "angle": 45, "filled": True, "size": 60, "color": GREY},
}


def _curves(rows: list[_Row], ends: list[_Row], x: alt.X, y: alt.Y) -> list[Any]:
    """The curves, and a mark at the end of each."""
    curves, marks = alt.Chart(alt.Data(values=rows)), alt.Chart(alt.Data(values=ends))
    layers: list[Any] = []
    for kind, (colour, thick) in _STROKES.items():
        own = curves.transform_filter(f"datum.kind === '{kind}'")
        layers.append(own.mark_line(color=colour, strokeWidth=thick).encode(x=x, y=y, detail="m:N"))
        for end, look in _ENDS.items():
            ended = f"datum.kind === '{kind}' && datum.end === '{end}'"
            point = marks.transform_filter(ended)
            layers.append(point.mark_point(**look, color=colour, opacity=1).encode(x=x, y=y))
    return layers


def _names(ends: list[_Row], x: alt.X, height: alt.Y) -> list[Any]:
    """The names of the curves, which stand on top of all of them."""
    marks = alt.Chart(alt.Data(values=ends))
    layers: list[Any] = []
    for kind, left in product(_STROKES, (False, True)):
        own = marks.transform_filter(f"datum.kind === '{kind}' && datum.left === {left}".lower())
        name = own.mark_text(
            align="right" if left else "left", dx=-BESIDE if left else BESIDE, fontSize=11,
            color=TEXT, baseline="middle", fontWeight="bold" if kind == CHOSEN else "normal",
        )  # fmt: skip
        layers.append(name.encode(x=x, y=height, text="name:N"))
    return layers


def _kind(advice: Advice, cell: Raced) -> str:
    return CHOSEN if is_recommended(advice, cell) else "tied" if cell.tied else "other"


def _ends(advice: Advice, cells: list[Raced], rows: list[_Row], frame: Frame) -> list[_Row]:
    """The last row of each curve, with how it ended, its name and the name's place."""
    notes = {CHOSEN: " ★", "tied": " (tied)", "other": ""}
    order = sorted(cells, key=lambda cell: not is_recommended(advice, cell))
    own = [[row for row in rows if row["m"] == f"{cell.batch_size}"] for cell in order]
    names = [f"m = {cell.batch_size}{notes[_kind(advice, cell)]}" for cell in order]
    curves = [[(row["time"], row["accuracy"]) for row in curve] for curve in own]
    fates = {"finished": "whole", "diverged": "diverged"}
    return [
        {
            **curve[-1], "end": fates.get(cell.fate, "stopped"), "name": name,
            "height": place.y, "left": place.left,
        }
        for cell, curve, name, place in zip(
            order, own, names, place_names(frame, curves, names), strict=True
        )
    ]  # fmt: skip


def _unit(longest: float) -> tuple[str, float]:
    return next(((name, size) for name, size in _UNITS if longest >= 5 * size), ("seconds", 1.0))


def _svg(chart: Any) -> str:
    spec = chart.to_dict()
    spec.pop("config", None)
    svg = vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE, config=_LOOK)
    # Inside HTML an SVG needs no namespace.
    for name in ("", ":xlink"):
        svg = svg.replace(f' xmlns{name}="http://www.w3.org/{_SPACES[name]}"', "")
    return svg


_SPACES = {"": "2000/svg", ":xlink": "1999/xlink"}
