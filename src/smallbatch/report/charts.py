"""Every kind of figure as a Vega-Lite specification, without data.

A specification names the tables it draws. Their rows, which `rows` makes, are put in when a figure
is drawn: by `figures` for the files, by `page.js` on the page. So one specification serves all
studies.

Figures of several curves are small multiples: one small frame per curve, with all others in grey.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt

from smallbatch.analysis.cells import FRACTIONS

# Okabe and Ito's blue and vermilion, which colour-blind readers can tell apart.
INK = "#0072b2"
BEST = "#d62728"
GREY = "#9aa0a6"
_DIVERGED = "#b8bcc2"
_SOME_DIVERGED = "#dfe1e5"
_HEIGHT = 300  # pixels
_SMALL = 130  # of one frame of several

RATES = {"base_lr": "base learning rate η̃", "lr": "learning rate η = m·η̃"}
ETA = "learning rate η"
"""Of studies under AdamW: their learning rate is η on every page."""
TIMES = {"epoch": "epoch", "updates": "updates (log scale)", "seconds": "seconds of training (log)"}
MEASURES = {"test_accuracy": "test accuracy (%)", "train_loss": "training loss (log scale)"}

# 2ᵏ of the powers of two on an axis. Vega has no superscripts, so its digits are looked up.
_K = "round(log(datum.value)/LN2)"
_DIGIT = "substring('⁰¹²³⁴⁵⁶⁷⁸⁹',{0},{0}+1)"
_POWER = (
    f"'2'+({_K}<0?'⁻':'')+(abs({_K})>9?{_DIGIT.format(f'floor(abs({_K})/10)')}:'')"
    f"+{_DIGIT.format(f'abs({_K})%10')}"
)


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        variants: Specifications by what is on an axis, such as ``base_lr`` and ``lr``; the first is
            shown until the reader chooses another.
        facet: The column of which each value has a frame of its own; empty if there is one frame.
        saved: The variants that are saved as files; no time of training, which is another on each
            machine, but for the figure that is about speed.
    """

    variants: dict[str, dict[str, Any]]
    facet: str = ""
    saved: tuple[str, ...] = ()


def kinds() -> dict[str, Kind]:
    """All kinds of figures by name."""
    heat_maps, ranges, all_of_them = (
        {rate: draw(rate, title) for rate, title in RATES.items()}
        for draw in (heat_map, study_ranges, all_ranges)
    )
    found = {
        "heat-map": Kind(heat_maps, saved=("base_lr",)),
        "stable-range": Kind(ranges, saved=tuple(RATES)),
        "all-ranges": Kind(all_of_them, "study", saved=tuple(RATES)),
        "heat-map-eta": Kind({"lr": heat_map("lr", ETA)}, saved=("lr",)),
        "stable-range-eta": Kind({"lr": study_ranges("lr", ETA, rules=True)}, saved=("lr",)),
        "all-ranges-eta": Kind({"lr": all_ranges("lr", ETA)}, "study", saved=("lr",)),
        "accuracy": Kind({"m": accuracy_curves()}, "frame", saved=("m",)),
        "best-accuracy": Kind({"m": best_accuracy()}, "study", saved=("m",)),
        "bn-batch": Kind({"bn": bn_batch_curves()}, "frame", saved=("bn",)),
        "cell": Kind({"epoch": cell_curves()}),
    }
    for measure in MEASURES:
        times = {time: convergence(measure, time) for time in TIMES}
        found[f"convergence-{measure.replace('_', '-')}"] = Kind(times, "frame", ("epoch",))
    return found


def heat_map(rate: str, title: str) -> dict[str, Any]:
    """Accuracy over the grid of one study; the cell named by ``picked`` has a dark frame.

    No tooltips: the page shows the cell that is pointed at beside the map.
    """
    base = alt.Chart(alt.NamedData("cells"))
    place: dict[str, Any] = {
        "x": alt.X("m:O", title="batch size m", axis=alt.Axis(labelAngle=0, grid=False)),
        "y": alt.Y(
            f"{rate}_label:O",
            sort=alt.EncodingSortField(field=rate, order="descending"),
            title=title,
            axis=alt.Axis(grid=False),
        ),
    }
    scale = alt.Color(
        "accuracy:Q",
        scale=alt.Scale(scheme="viridis"),
        legend=None,  # every cell says its number
    )
    grey = f"datum.all_diverged ? '{_DIVERGED}' : '{_SOME_DIVERGED}'"
    finished = base.transform_filter("isValid(datum.accuracy)")
    lost = base.transform_filter("!isValid(datum.accuracy)")
    layers = [
        lost.mark_rect(fill=alt.ExprRef(grey)).encode(**place),
        finished.mark_rect().encode(**place, color=scale),
        base.transform_filter("datum.best")
        .mark_rect(filled=False, stroke=BEST, strokeWidth=2.5)
        .encode(**place),
        base.transform_filter("datum.key === picked")
        .mark_rect(filled=False, stroke=alt.ExprRef("frame"), strokeWidth=3)
        .encode(**place),
        base.mark_text(fontSize=11, color=alt.ExprRef(_TEXT)).encode(**place, text="text:N"),
    ]
    whole = alt.layer(*layers).add_params(
        alt.param(name="picked", value=""), alt.param(name="frame", value="#1a1a1a")
    )
    return done(whole.properties(width="container", height=alt.Step(24)))


def accuracy_curves() -> dict[str, Any]:
    """Reported accuracy against m, a frame per learning rate (paper, Figs. 1-11)."""
    m, y = m_axis(), accuracy_axis()
    chance = alt.Chart().mark_rule(strokeDash=[2, 2], color=GREY)
    floor = chance.encode(y=alt.Y("chance:Q", aggregate="min", title="test accuracy (%)"))
    layers = [_others("frame", m, y), *_curve(m, y), floor]
    return _frames("cells", layers, "frame", "base_lr")


def best_accuracy() -> dict[str, Any]:
    """Best accuracy against m, a frame per study (paper, Fig. 15), with bars over the seeds."""
    m, y = m_axis(), accuracy_axis()
    layers = [_others("study", m, y), *_seed_bars(m), *_curve(m, y)]
    return _frames("cells", layers, "study", "study")


def bn_batch_curves() -> dict[str, Any]:
    """Accuracy against the BN batch size, a frame per SGD batch size (paper, Figs. 13 and 14)."""
    x = alt.X("bn:O", title="BN batch size", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = accuracy_axis()
    return _frames("cells", [_others("frame", x, y), *_seed_bars(x), *_curve(x, y)], "frame", "m")


def study_ranges(rate: str, title: str, *, rules: bool = False) -> dict[str, Any]:
    """One study's reliable range against m, at every fraction of the way to its best cell.

    With ``rules`` also the best η of each m, and in place of a fit the rules of thumb.
    """
    suffix = "_lr" if rate == "lr" else ""
    fit = alt.Chart(alt.NamedData("fit"))
    legend = alt.Legend(
        title="fraction of the way from chance to the best cell", orient="bottom", titleLimit=0
    )
    colours = alt.Scale(scheme="viridis", reverse=True, domain=list(FRACTIONS))
    look: dict[str, Any] = {
        "color": alt.Color("fraction:O", scale=colours, legend=legend),
        "xOffset": alt.XOffset("fraction:O", sort=list(FRACTIONS)),
    }
    fitted = [
        fit.mark_area(opacity=0.2, color=GREY).encode(
            m_axis(), _rate_axis(f"low{suffix}", title), alt.Y2(f"high{suffix}:Q")
        ),
        fit.mark_line(strokeDash=[5, 3], color=GREY).encode(
            m_axis(), _rate_axis(f"limit{suffix}", title)
        ),
    ]
    layers = [
        *(_rules(title) if rules else fitted),
        *_range_marks(alt.Chart(alt.NamedData("ranges")), rate, title, look),
        *([_best_lrs(title)] if rules else []),
    ]
    return done(alt.layer(*layers).properties(width="container", height=_HEIGHT))


def _rules(title: str) -> list[alt.Chart]:
    """Rules of thumb for η as lines through the best η of the smallest m, each with its name."""
    chart = alt.Chart(alt.NamedData("rules"))
    legend = alt.Legend(title="for comparison, rules of thumb", orient="top", titleLimit=0)
    lines = chart.mark_line(color=GREY, strokeWidth=1.5).encode(
        m_axis(),
        _rate_axis("lr", title),
        strokeDash=alt.StrokeDash("rule:N", legend=legend),
        tooltip=[alt.Tooltip("rule:N"), alt.Tooltip("m:O"), alt.Tooltip("lr:Q", format=".3~g")],
    )
    return [lines]


def _best_lrs(title: str) -> alt.Chart:
    """The best η of each m, as rhombs."""
    chart = alt.Chart(alt.NamedData("cells"))
    mark = chart.mark_point(shape="diamond", size=90, color=BEST, strokeWidth=2)
    return mark.encode(m_axis(), _rate_axis("lr", title), tooltip=_CELL_TIPS)


def all_ranges(rate: str, title: str) -> dict[str, Any]:
    """All studies' ranges of one data set at the main fraction, a frame per study (Fig. 16)."""
    return _frames("ranges", _range_marks(alt.Chart(), rate, title, {}), "study", "study")


def convergence(measure: str, time: str) -> dict[str, Any]:
    """Test accuracy or training loss of all m at one η̃, a frame per m (paper, Fig. 4).

    A cross: from there on the median of the seeds falls on a diverged run.
    """
    field = "accuracy" if measure == "test_accuracy" else "loss"
    kind = alt.Scale(zero=False) if time == "epoch" else alt.Scale(type="log")
    x = alt.X(f"{time}:Q", title=TIMES[time], scale=kind, axis=alt.Axis(tickCount=4, format="~s"))
    heights = alt.Scale(zero=False) if field == "accuracy" else alt.Scale(type="log")
    y = alt.Y(f"{field}:Q", title=MEASURES[measure], scale=heights, axis=alt.Axis(tickCount=5))
    tips = [
        alt.Tooltip("m:O", title="m"),
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("updates:Q"),
        alt.Tooltip(f"{field}:Q", format=".3~f"),
    ]
    own = alt.Chart().transform_filter(f"isValid(datum.{field}) && isValid(datum.{time})")
    ended = own.transform_filter("datum.diverges").mark_point(**_CROSS).encode(x, y, tooltip=tips)
    layers = [_others("frame", x, y), own.mark_line(color=INK).encode(x, y, tooltip=tips), ended]
    return _frames("curves", layers, "frame", "m")


def cell_curves() -> dict[str, Any]:
    """Test accuracy of the runs of one cell by epoch, a line per seed."""
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(format="d"))
    tips = [alt.Tooltip("seed:N"), alt.Tooltip("epoch:Q"), alt.Tooltip("accuracy:Q")]
    own = alt.Chart(alt.NamedData("runs")).mark_line(point=alt.OverlayMarkDef(size=18))
    y = alt.Y("accuracy:Q", title="accuracy (%)", scale=alt.Scale(zero=False))
    chart = own.encode(x, y, color=alt.Color("seed:N", title="seed"), tooltip=tips)
    return done(chart.properties(width="container", height=130))


_DOT: dict[str, Any] = {"filled": True, "size": 30, "opacity": 1}
_CROSS: dict[str, Any] = {
    "shape": "cross", "angle": 45, "size": 70, "color": BEST, "filled": True, "opacity": 1
}  # fmt: skip
# Of a cell: readable on its colour, and on the grey of what diverged in light and dark pages.
_TEXT = "datum.dark ? 'white' : isValid(datum.accuracy) ? '#1a1a1a' : frame"
_CELL_TIPS = [
    alt.Tooltip("study:N"),
    alt.Tooltip("m:O", title="m"),
    alt.Tooltip("base_lr_label:N", title="η̃"),
    alt.Tooltip("lr_label:N", title="η"),
    alt.Tooltip("accuracy:Q", title="accuracy (%)"),
    alt.Tooltip("seeds:N", title="worst … best seed"),
    alt.Tooltip("outcome:N"),
]
_RANGE_TIPS = [
    alt.Tooltip("study:N"),
    alt.Tooltip("m:O", title="m"),
    alt.Tooltip("fraction:N"),
    alt.Tooltip("range:N", title="reliable η̃"),
    alt.Tooltip("range_lr:N", title="reliable η"),
]


def m_axis() -> alt.X:
    """The axis of batch sizes."""
    return alt.X("m:O", title="batch size m", axis=alt.Axis(labelAngle=0, labelOverlap=True))


def accuracy_axis() -> alt.Y:
    """The axis of accuracies in percent."""
    return alt.Y("accuracy:Q", title="test accuracy (%)", scale=alt.Scale(zero=False))


def log2() -> alt.Scale:
    """A logarithmic scale with its ticks at powers of two."""
    return alt.Scale(type="log", base=2, nice=False, padding=12)


def _rate_axis(field: str, title: str) -> alt.Y:
    axis = alt.Axis(labelExpr=_POWER, labelOverlap=True, tickCount=6)
    return alt.Y(f"{field}:Q", title=title, scale=log2(), axis=axis)


def _others(each: str, x: alt.X, y: alt.Y) -> alt.Chart:
    """The curves of all frames in grey.

    The table `all` has the rows of the frames' own table; under their own name the facet would deal
    them out to the frames.
    """
    chart = alt.Chart(alt.NamedData("all")).mark_line(color=GREY, opacity=0.4, strokeWidth=1)
    return chart.encode(x, y, detail=f"{each}:N")


# The layers below have no data of their own, so that the facet deals its rows out to them.


def _curve(x: alt.X, y: alt.Y) -> list[alt.Chart]:
    points = alt.Chart().transform_filter("isValid(datum.accuracy)").mark_point(**_DOT, color=INK)
    line = alt.Chart().mark_line(color=INK)
    return [line.encode(x, y), points.encode(x, y, tooltip=_CELL_TIPS)]


def _seed_bars(x: alt.X) -> list[alt.Chart]:
    """Bars from the worst seed to the best; a cross at the bottom where a seed diverged."""
    low = alt.Y("low:Q", title="test accuracy (%)", scale=alt.Scale(zero=False))
    bars = alt.Chart().transform_filter("isValid(datum.low)").mark_rule(color=INK)
    lost = alt.Chart().transform_filter("datum.lost").mark_point(**_CROSS)
    return [
        bars.encode(x, low, alt.Y2("high:Q"), tooltip=_CELL_TIPS),
        lost.encode(x, y=alt.value("height"), tooltip=_CELL_TIPS),
    ]


def _range_marks(ranges: alt.Chart, rate: str, title: str, look: dict[str, Any]) -> list[alt.Chart]:
    """A bar per m, a dot at each reliable rate, open triangles where a range ends with the grid."""
    suffix = "_lr" if rate == "lr" else ""
    m = m_axis()
    low, high = _rate_axis(f"lower{suffix}", title), alt.Y2(f"upper{suffix}:Q")
    bars, dots = (ranges.transform_filter(f"datum.part === '{part}'") for part in ("bar", "dot"))
    marks = [
        bars.mark_rule(strokeWidth=4, opacity=0.6, color=INK).encode(m, low, high),
        dots.mark_point(**_DOT, color=INK).encode(m, _rate_axis(f"at{suffix}", title)),
    ]
    for end, shape, shift in (("upper", "triangle-up", -9), ("lower", "triangle-down", 9)):
        ended = bars.transform_filter(f"datum.{end}_edge")
        mark = ended.mark_point(shape=shape, size=40, yOffset=shift, color=INK, strokeWidth=1.2)
        marks.append(mark.encode(m, _rate_axis(f"{end}{suffix}", title)))
    return [mark.encode(**look, tooltip=_RANGE_TIPS) for mark in marks]


def _frames(table: str, layers: list[alt.Chart], each: str, order: str) -> dict[str, Any]:
    """A frame for each value of a column of a table, in the order of another."""
    frame = alt.layer(*layers).properties(width=_SMALL, height=_SMALL)
    header = alt.Header(title=None, labelFontWeight="bold", labelLimit=180)
    facet = alt.Facet(f"{each}:N", sort=alt.EncodingSortField(field=order), header=header)
    return done(frame.facet(facet, columns=3, data=alt.NamedData(table)))


def done(chart: Any) -> dict[str, Any]:
    """A chart as a specification, which takes its look from where it is drawn."""
    spec = chart.to_dict()
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return spec
