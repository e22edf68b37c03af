"""What a batch size costs: the memory of an update and the speed of training, against m."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from smallbatch.analysis.cells import STUDY_KEYS
from smallbatch.report.charts import GREY, Kind, done, log2
from smallbatch.report.figures import Figure, plain_name
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.report.rows import Row

KIND = "all-costs"
MEMORY, SPEED = "memory of one run by loop (bytes)", "speed (images/s)"
ONE, MANY = "one run", "the column's runs together"
# Okabe and Ito's, which colour-blind readers can tell apart, dark enough on white.
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#882255", "#999933", "#44aa99"]
_DASHES = [[1, 0], [6, 3], [8, 3, 2, 3], [1, 3], [3, 2]]
_SIZE = 260  # pixels, of a panel of the files
_PLACE = [*STUDY_KEYS, "batch_size"]
_COLUMNS = [*STUDY_KEYS, "model", "norm", "batch_size", "device", "loop_bytes", "stacked_bytes",
            "engine", "images_per_second", "speed_of"]  # fmt: skip


def cost_table(runs: pd.DataFrame, timings: pd.DataFrame, memory: pd.DataFrame) -> pd.DataFrame:
    """A row per column that was run, with what is known of its memory and its speed.

    Args:
        runs: The runs of all studies, as `load_results` makes them.
        timings: As `report.environment.read_timings` makes them.
        memory: As `analysis.measurements.read_memory` makes them. Of other images, models or norms
            than the column's it does not count.

    Returns:
        Its place and settings; ``device``, ``loop_bytes`` and ``stacked_bytes`` of one update of
        one run; ``engine``, ``images_per_second`` and ``speed_of``: ``run`` where `loop` trained
        the column, the median of its runs' own speeds; ``column`` where `stacked` did, the speed of
        all its runs together. What is not known is missing.
    """
    rows: list[dict[str, Any]] = []
    speeds = {_key(it): it for it in timings.to_dict("records")}
    bytes_of = {(*_key(it), it["engine"]): it for it in _of_one_device(memory)}
    for (dataset, study, m), own in runs.groupby(_PLACE):
        place = (str(dataset), str(study), int(str(m)))
        # Under `bn_batch_size: up to N` the norm depends on m.
        settings = {key: str(own[key].iloc[0]) for key in ("model", "norm")}
        trained = {**settings, "fingerprint": own["fingerprint"].iloc[0]}
        found = {engine: bytes_of.get((*place, engine)) for engine in ("loop", "stacked")}
        kept = {
            engine: row
            for engine, row in found.items()
            if row is not None and all(row[key] == value for key, value in trained.items())
        }
        rows.append(
            {
                **dict(zip(_PLACE, place, strict=True)),
                **settings,
                "device": next((row["device"] for row in kept.values()), None),
                **{f"{engine}_bytes": row["bytes"] for engine, row in kept.items()},
                **_speed(speeds.get(place, {}), own),
            }
        )
    whole = dict.fromkeys(("loop_bytes", "stacked_bytes"), "Int64")
    return pd.DataFrame(rows, columns=_COLUMNS).astype(whole)


def _of_one_device(memory: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows of each study that was measured on one device: those of two are not compared."""
    if memory.empty:
        return []
    devices = memory.groupby(STUDY_KEYS)["device"].transform("nunique")
    return memory[devices == 1].to_dict("records")


def _key(row: dict[Any, Any]) -> tuple[str, str, int]:
    return row["dataset"], row["study"], int(row["batch_size"])


def _speed(timing: dict[Any, Any], runs: pd.DataFrame) -> dict[str, Any]:
    """Images per second of a column, and of what; nothing where it is not known."""
    engine = json.loads(timing.get("environment", "{}")).get("engine")
    found, of = math.nan, "run"
    if engine == "loop":
        found = float(runs["images_per_second"].median())
    elif engine == "stacked":
        found, of = float(timing["images_per_second"]), "column"
    if not found > 0:
        return {}
    return {"engine": engine, "images_per_second": found, "speed_of": of}


def cost_rows(costs: pd.DataFrame) -> list[Row]:
    """The rows of the figure: one for each point of either panel."""
    rows: list[Row] = []
    for each in costs.to_dict("records"):
        place: Row = {key: each[key] for key in (*STUDY_KEYS, "model", "norm")}
        place["m"] = each["batch_size"]
        if not pd.isna(each["loop_bytes"]):
            rows.append({**place, "panel": MEMORY, "of": ONE, "value": int(each["loop_bytes"])})
        if not pd.isna(speed := each["images_per_second"]):
            of = ONE if each["speed_of"] == "run" else MANY
            rows.append({**place, "panel": SPEED, "of": of, "value": float(f"{speed:.4g}")})
    return rows


def cost_figures(dataset: str, rows: Sequence[Row]) -> list[Figure]:
    """The figure of a data set's studies, if anything of their cost is known.

    Args:
        dataset: The name of the data set.
        rows: As `cost_rows` makes them, of all data sets.
    """
    own = [row for row in rows if row["dataset"] == dataset]
    if not own:
        return []
    panels = {row["panel"] for row in own}
    speeds = {row["of"] for row in own if row["panel"] == SPEED}
    studies = count(len({row["study"] for row in own}), "study", "studies")
    said = ["Memory and throughput against m, both axes logarithmic; a line per study."]
    if MEMORY in panels:
        said.append(
            "Memory: bytes that one update of one run needs by the engine loop, counted at each m: "
            "weights, gradient, moments, images, labels and what the forward pass leaves for the "
            "backward pass (on a GPU the allocator's peak)."
        )
    else:
        said.append("The memory was not counted: smallbatch measure does.")
    if SPEED in panels:
        said.append(
            "Speed: training images per second while these columns were trained, on the "
            "hardware named below; of trainings of a few seconds it is lower, as they include "
            "their start"
            + (f"; circles: {ONE}, trained by loop" if ONE in speeds else "")
            + (f"; squares: {MANY}, trained by stacked" if MANY in speeds else "")
            + ("; no line joins the two" if len(speeds) > 1 else "")
            + "."
        )
    return [
        Figure(
            plain_name(dataset, "costs"),
            KIND,
            f"Line charts: {' and '.join(sorted(panels))} against the batch size for {studies} on "
            f"{dataset}.",
            " ".join(said),
            {"costs": ("costs", {"dataset": dataset})},
        )
    ]


def cost_kinds() -> dict[str, Kind]:
    """The kind of this figure, beside `charts.kinds`."""
    m = alt.X(
        "m:Q",
        title="batch size m",
        scale=log2(),
        axis=alt.Axis(format="d", labelOverlap=True, tickCount=8),
    )
    y = alt.Y(
        "value:Q",
        title=None,
        scale=alt.Scale(type="log", nice=False, padding=12),
        axis=alt.Axis(format="~s", tickCount=5, labelOverlap=True),
    )
    bottom: dict[str, Any] = {"orient": "bottom", "titleLimit": 0, "labelLimit": 0, "columns": 3}
    look: dict[str, Any] = {
        "color": alt.Color(
            "model:N", scale=alt.Scale(range=_COLOURS), legend=alt.Legend(title="model", **bottom)
        ),
        # Of one run and of all together are speeds of two kinds, which no line joins.
        "detail": alt.Detail(["study:N", "of:N"]),
        "tooltip": [
            alt.Tooltip("study:N"),
            alt.Tooltip("model:N"),
            alt.Tooltip("norm:N"),
            alt.Tooltip("m:Q", title="m"),
            alt.Tooltip("value:Q", format=",.6~g"),
            alt.Tooltip("panel:N", title="of what"),
            alt.Tooltip("of:N", title="of"),
        ],
    }
    dash = alt.StrokeDash(
        "norm:N",
        scale=alt.Scale(range=_DASHES),
        legend=alt.Legend(title="norm", symbolSize=600, **bottom),  # long enough for a pattern
    )
    shape = alt.Shape(
        "of:N",
        scale=alt.Scale(domain=[ONE, MANY], range=["circle", "square"]),
        legend=alt.Legend(title="of", symbolFillColor=GREY, symbolStrokeColor=GREY, **bottom),
    )
    lines = alt.Chart().mark_line(strokeWidth=1.5).encode(m, y, strokeDash=dash, **look)
    points = alt.Chart().mark_point(filled=True, size=36, opacity=1)
    frame = alt.layer(lines, points.encode(m, y, shape=shape, **look))
    header = alt.Header(title=None, labelFontWeight="bold")
    chart = (
        frame.properties(width=_SIZE, height=_SIZE)
        .facet(alt.Facet("panel:N", header=header), columns=2, data=alt.NamedData("costs"))
        .resolve_scale(y="independent")
    )
    return {KIND: Kind({"m": done(chart)}, "panel", saved=("m",))}
