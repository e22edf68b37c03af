"""The section on budgets: which m is best for equal epochs, equal updates and equal time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import pandas as pd

from smallbatch.analysis.budgets import COLUMNS, compare_budgets, speeds_of_columns
from smallbatch.analysis.families import EQUAL, families
from smallbatch.report.charts import BEST, INK, Kind, accuracy_axis, done, m_axis
from smallbatch.report.figures import Figure, plain_name
from smallbatch.report.labels import DASH, duration, listed, percent, power_of_two
from smallbatch.report.tables import Table

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from smallbatch.report.rows import Row

KIND = "budgets"
NAMES = {"epochs": "equal epochs", "updates": "equal updates", "seconds": "equal time"}
_PALE, _DARK = "#bcd9ee", "#003a63"
_FRAME = (200, 240)  # pixels


def under_budgets(runs: pd.DataFrame, timings: pd.DataFrame) -> pd.DataFrame:
    """The rows of `compare_budgets` of all families; equal time is that of their columns."""
    parts = [compare_budgets(it, speeds_of_columns(it, timings)) for it in families(runs)]
    return pd.concat(parts) if parts else pd.DataFrame(columns=list(COLUMNS))


def budget_kind(frames: Sequence[str] = tuple(NAMES.values())) -> Kind:
    """Accuracy against m, a frame per budget, a line per amount; stronger colours are of more.

    Args:
        frames: What is written over the frames, in their order.
    """
    x, y = m_axis(), accuracy_axis()
    low = alt.Y("low:Q", title="test accuracy (%)", scale=alt.Scale(zero=False))
    colours = alt.Scale(range=[_PALE, INK, _DARK], interpolate="lab")
    look: dict[str, Any] = {
        "color": alt.Color("rank:Q", scale=colours, legend=None),
        "detail": alt.Detail("rank:O"),
    }
    tips = [
        alt.Tooltip("amount_text:N", title="budget"),
        alt.Tooltip("m:O", title="m"),
        alt.Tooltip("epochs_text:N", title="epochs"),
        alt.Tooltip("accuracy:Q", title="accuracy (%)"),
        alt.Tooltip("interval:N", title="95 % interval (%)"),
        alt.Tooltip("base_lr_label:N", title="best learning rate"),
        alt.Tooltip("standing:N"),
    ]
    own = alt.Chart().transform_filter("isValid(datum.accuracy)")
    bars = own.transform_filter("isValid(datum.low)").mark_rule()
    best = own.transform_filter("datum.standing === 'best'")
    rhomb = best.mark_point(shape="diamond", size=90, color=BEST, strokeWidth=2)
    name = own.transform_filter("datum.last").mark_text(align="left", dx=7, fontSize=9)
    layers = [
        bars.encode(x, low, alt.Y2("high:Q"), **look),
        own.mark_line().encode(x, y, **look),
        own.mark_point(filled=True, size=30, opacity=1).encode(x, y, tooltip=tips, **look),
        rhomb.encode(x, y, detail=look["detail"], tooltip=tips),
        name.encode(x, y, text="amount_text:N"),
    ]
    width, height = _FRAME
    header = alt.Header(title=None, labelFontWeight="bold", labelLimit=200)
    facet = alt.Facet("frame:N", sort=list(frames), header=header)
    frame = alt.layer(*layers).properties(width=width, height=height)
    whole = frame.facet(facet, columns=3, data=alt.NamedData(KIND))
    return Kind({"m": done(whole)}, "frame", saved=("m",))


def budget_rows(found: pd.DataFrame) -> list[Row]:
    """Rows of the figures, from those of `under_budgets`."""
    rows: list[Row] = []
    for _, own in found.groupby(["dataset", "family", "budget"]):
        amounts = sorted(own["amount"].unique())
        known = own.dropna(subset=["accuracy"])
        ends = {amount: known.loc[known["amount"] == amount, "batch_size"].max()
                for amount in amounts}  # fmt: skip
        rows += [
            {
                "dataset": row["dataset"],
                "family": row["family"],
                "frame": row.get("frame") or NAMES[row["budget"]],
                "amount_text": amount_text(row["budget"], row["amount"]),
                "rank": amounts.index(row["amount"]),
                "m": int(row["batch_size"]),
                "epochs_text": f"{row['epochs']:.3g}",
                "accuracy": _percent(row["accuracy"]),
                "low": _percent(row["low"]),
                "high": _percent(row["high"]),
                "interval": _interval(row),
                "base_lr_label": power_of_two(row["base_lr"]),
                "standing": row["standing"] or DASH,
                "last": bool(row["batch_size"] == ends[row["amount"]]),
            }
            for row in own.to_dict("records")
        ]
    return rows


def budget_figures(dataset: str, found: pd.DataFrame) -> list[Figure]:
    """A figure for each family of one data set."""
    figures: list[Figure] = []
    for family, own in found.groupby("family"):
        budgets = listed([NAMES[it] for it in EQUAL if it in set(own["budget"])])
        where = {"dataset": dataset, "family": family}
        studies = str(own["studies"].iloc[0]).split()
        how = "mean over seeds at the learning rate that is best at the other seeds"
        if own["n_seeds"].eq(1).all():
            how = "one seed at its best learning rate, which flatters"
        figures.append(
            Figure(
                plain_name(dataset, str(family), KIND),
                KIND,
                f"Line charts: test accuracy of {family} against the batch size for {budgets}, a "
                "line for each amount.",
                f"{family}, by the studies {listed(studies)}: accuracy against m for {budgets} "
                f"({how}; bars: 95 % interval), a line for each amount. Rhomb: the best m of it, "
                f"where they were compared. {_of_time(own)}",
                {KIND: (KIND, where)},
            )
        )
    return figures


def _of_time(own: pd.DataFrame) -> str:
    if not own["budget"].eq("seconds").any():
        return (
            "Time is not compared: it is not known, differs too much between the m, or is of "
            "several kinds of machine, engines or numbers of workers."
        )
    return (
        "Time: seconds per run when all runs of a column train together, its time divided by its "
        "runs, on the machine that trained it; a run alone takes longer. Between two numbers of "
        "epochs accuracies are interpolated."
    )


def budget_tables(found: pd.DataFrame) -> list[Table]:
    """Which m is best for each family, budget and amount of one data set."""
    if found.empty:
        return []
    rows: list[list[str]] = []
    for family, own in found.groupby("family"):
        every = own["batch_size"].unique().tolist()
        for budget in EQUAL:
            for amount, some in own[own["budget"] == budget].groupby("amount"):
                rows.append([str(family), NAMES[budget], amount_text(budget, float(str(amount))),
                             *_verdict(some, every)])  # fmt: skip
    headers = (
        "studies",
        "budget",
        "of",
        "seeds",
        "best m",
        "its accuracy",
        "95 % interval (%)",
        "m that may be as good",
        "worse",
        "m not compared",
        "best learning rate at the edge of the grid at m",
    )
    caption = (
        "Which m is best under each budget. Not compared are the m that were not run both with "
        "less and with more than it; between two numbers of epochs accuracies are interpolated. "
        "What is worse is judged more strictly than by the intervals, which are of one m each; "
        "with fewer than three seeds, or where nothing is beyond chance, nothing is."
    )
    return [Table(caption, headers, rows)]


def amount_text(budget: str, amount: float) -> str:
    """An amount with its unit: 10 epochs, 500 updates, 2.1 s."""
    if budget == "seconds":
        return duration(amount) if amount >= 100 else f"{amount:.3g} s"
    return f"{amount:,.0f} {budget if amount != 1 else budget.removesuffix('s')}"


def _verdict(some: pd.DataFrame, every: Collection[int]) -> list[str]:
    rows: list[dict[Any, Any]] = some.to_dict("records")

    def sizes(*standings: str) -> str:
        return listed([str(it["batch_size"]) for it in rows if it["standing"] in standings]) or DASH

    edges = listed([str(it["batch_size"]) for it in rows if it["on_edge"]]) or DASH
    left = listed([str(m) for m in sorted(set(every) - {it["batch_size"] for it in rows})]) or DASH
    best = next((it for it in rows if it["standing"] == "best"), None)
    named = [DASH, DASH, DASH] if best is None else [
        str(best["batch_size"]), percent(best["accuracy"]), _interval(best)
    ]  # fmt: skip
    return [
        str(rows[0]["n_seeds"]), *named, sizes("open"), sizes("worse", "unusable"), left, edges
    ]  # fmt: skip


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 2)


def _interval(row: dict[Any, Any]) -> str:
    if math.isnan(row["low"]):
        return DASH
    return f"{100 * row['low']:.1f} … {100 * row['high']:.1f}"
