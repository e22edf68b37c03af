"""The tables of the page, as text for readers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.analysis.cells import FRACTIONS, MAIN_FRACTION
from smallbatch.analysis.frames import on_lr_axis
from smallbatch.analysis.sampling import beyond_chance, interval, leaves_open
from smallbatch.analysis.stability import BELOW, DIVERGED, EDGE, fit_upper_limit
from smallbatch.report.labels import DASH, percent, points, power_of_two, rate_of, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMITS = {EDGE: "edge of the grid", DIVERGED: "a seed diverged", BELOW: "a seed below τ", "": DASH}
_EDGES = {"lower": "lowest tried", "upper": "highest tried", "only": "only one tried", "": ""}


@dataclass(frozen=True)
class Table:
    """A table of the page. The first cell of a row is its header; cells of prose may wrap.

    A folded table shows only its caption until it is opened.
    """

    caption: str
    headers: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    prose: bool = False
    folded: bool = False


def best_table(best: pd.DataFrame, chosen_on: str, n_test: int | None) -> Table:
    """One study's best cell at each batch size.

    Args:
        best: The study's rows of `best_cells`.
        chosen_on: What they were chosen on, "test" or "validation".
        n_test: The number of test images, None if not recorded. If they leave any of the accuracies
            open by more than a percentage point, all have their interval beside them.
    """
    known = [value for value in best["accuracy"] if not math.isnan(value)]
    small = n_test is not None and any(leaves_open(value, n_test) for value in known)
    rate = rate_of(best)
    rows = [
        [
            str(row["batch_size"]),
            DASH if rate == "η" else power_of_two(row["base_lr"]),
            power_of_two(row["lr"]),
            percent(row["accuracy"]),
            _interval(row["accuracy"], n_test) if small else "",
            seeds_of(row),
            f"{row['n_seeds'] - row['n_diverged']} of {row['n_seeds']}",
            percent(row["train_accuracy"]),
            points(row["generalisation_gap"]),
            percent(row["population_test_accuracy"]),
            _EDGES[row["grid_edge"]],
        ]
        for row in best.to_dict("records")
    ]
    headers = (
        "m",
        "best η̃",
        "best η" if rate == "η" else "η = m·η̃",
        "accuracy (median)",
        "95 % interval",
        "worst … best seed",
        "seeds finished",
        "final training accuracy",
        "generalisation gap (points)",
        "with recomputed BN statistics",
        f"{rate} at the edge of the grid",
    )
    how = (
        f"the best {rate} chosen on the test set, as the paper does"
        if chosen_on == "test"
        else f"the best {rate} chosen on the validation split; accuracies are the test set's"
    )
    caption = f"Best cell at each batch size, {how}."
    if small:
        caption += (
            f" The interval is for further images of the same kind, as there are {n_test:,} test "
            "images only. All rows share these: their order is surer than the intervals suggest."
        )
    return _without_empty(Table(caption, headers, rows))


def range_table(ranges: pd.DataFrame) -> Table:
    """One study's reliable range at each batch size, at the main fraction."""
    rate = rate_of(ranges)
    rows = [
        [
            str(row["batch_size"]),
            DASH if rate == "η" else power_of_two(row["lower"]),
            DASH if rate == "η" else power_of_two(row["upper"]),
            f"{row['octaves']:.3g}" if row["n_reliable"] else "none reliable",
            f"{row['n_reliable']} of {row['n_base_lrs']}",
            power_of_two(row["lower_lr"]),
            power_of_two(row["upper_lr"]),
            _LIMITS[row["lower_limit"]],
            _LIMITS[row["upper_limit"]],
            ", ".join(power_of_two(value) for value in row["holes"]),
        ]
        for row in ranges[ranges["fraction"] == MAIN_FRACTION].to_dict("records")
    ]
    headers = (
        "m",
        "lowest η̃",
        "highest η̃",
        "width (octaves)",
        f"{rate} reliable",
        "lowest η",
        "highest η",
        "next below",
        "next above",
        "holes",
    )
    threshold = ranges.loc[ranges["fraction"] == MAIN_FRACTION, "threshold"].iloc[0]
    caption = (
        f"{'Learning rates' if rate == 'η' else 'Base learning rates'} that converge reliably "
        f"(every seed at least {percent(threshold)})."
    )
    return _without_empty(Table(caption, headers, rows))


def fraction_table(ranges: pd.DataFrame) -> Table:
    """One study's reliable range at each batch size, a column per fraction."""
    rows = [
        [str(batch_size), *(_range_text(group, fraction) for fraction in FRACTIONS)]
        for batch_size, group in ranges.groupby("batch_size")
    ]
    thresholds = ranges.groupby("fraction")["threshold"].first()
    headers = tuple(f"{value:g} (τ = {percent(float(thresholds[value]))})" for value in FRACTIONS)
    caption = (
        f"The reliable range of {rate_of(ranges)} if the threshold lies elsewhere between chance "
        "(0) and the study's best cell (1)."
    )
    return Table(caption, ("m", *headers), rows)


def fit_table(ranges: pd.DataFrame) -> Table:
    """One study's fitted upper end at each fraction."""
    rows: list[list[str]] = []
    for fraction, group in ranges.groupby("fraction"):
        fit = fit_upper_limit(group)
        bounds = {"": "", "lower": "at most ", "upper": "at least "}
        # Where all ends fall as 1/m, only the product of η̃₀ and m* is known.
        least = "at least " if fit and fit.m_star_bound == "lower" else ""
        rows.append(
            [
                f"{fraction:g}",
                f"{least}{fit.base_lr_0:.3g}" if fit else DASH,
                f"{bounds[fit.m_star_bound]}{fit.m_star:.3g}" if fit else DASH,
                f"{fit.rms_octaves:.2f}" if fit else DASH,
                str(fit.n_points) if fit else "fewer than 3",
            ]
        )
    headers = ("fraction", "η̃₀", "m*", "residual (octaves)", "batch sizes")
    caption = "The fitted upper end η̃₀/(1 + m/m*) for each threshold."
    return Table(caption, headers, rows)


def study_table(winners: pd.DataFrame, runs: pd.DataFrame) -> Table:
    """All studies of one data set: what was run, and the best results."""
    rows: list[list[str]] = []
    for row in winners.to_dict("records"):
        own = runs[runs["study"] == row["study"]]
        found = [f"none: {percent(row['accuracy'])} is not beyond chance", *[DASH] * 4]
        if beyond_chance(row["accuracy"], own):
            found = [
                percent(row["accuracy"]),
                seeds_of(row),
                str(row["batch_size"]),
                DASH if rate_of(own) == "η" else power_of_two(row["base_lr"]),
                power_of_two(row["lr"]),
            ]
        rows.append([row["study"], *found, run_counts(own)])
    for study in sorted(set(runs["study"]) - set(winners["study"])):
        own = runs[runs["study"] == study]
        rows.append([study, f"none: {why_none(own)}", *[DASH] * 4, run_counts(own)])
    headers = (
        "study",
        "best accuracy",
        "worst … best seed",
        "at m",
        "η̃",
        "η",
        "runs (diverged)",
    )
    table = Table("Best cell of each study, chosen on the test set.", headers, rows)
    return _without_empty(table) if on_lr_axis(runs) else table


def why_none(runs: pd.DataFrame) -> str:
    """Why a study has no best cell, as the end of a sentence."""
    diverged = runs["outcome"].eq("diverged")
    if diverged.all():
        return "every run diverged"
    if runs.loc[~diverged, "reported_accuracy"].notna().any():
        return "in every cell at least half of the seeds diverged"
    return "no finished run has an accuracy"


def seeds_of(row: dict[Any, Any]) -> str:
    """Write the worst and the best seed of a cell; a dash if no finished one has an accuracy."""
    if math.isnan(row["max_accuracy"]) and row["n_diverged"] < row["n_seeds"]:
        return DASH
    return spread(row["min_accuracy"], row["max_accuracy"])


def _interval(accuracy: float, n_test: int | None) -> str:
    if n_test is None or math.isnan(accuracy):
        return DASH
    return spread(*interval(accuracy, n_test))


def _range_text(group: pd.DataFrame, fraction: float) -> str:
    row: dict[Any, Any] = group[group["fraction"] == fraction].to_dict("records")[0]
    if not row["n_reliable"]:
        return "none"
    ends = [power_of_two(row["lower"]), power_of_two(row["upper"])]
    text = ends[0] if row["n_reliable"] == 1 else " … ".join(ends)
    return text + (f" ({len(row['holes'])} missing)" if len(row["holes"]) else "")


def run_counts(runs: pd.DataFrame) -> str:
    """Write the number of runs, and in brackets how many of them diverged."""
    return f"{len(runs)} ({runs['outcome'].eq('diverged').sum()})"


def _without_empty(table: Table) -> Table:
    """Drop columns that are empty in every row."""
    kept = [
        index
        for index in range(len(table.headers))
        if any(row[index] not in ("", DASH) for row in table.rows)
    ]
    return Table(
        table.caption,
        tuple(table.headers[index] for index in kept),
        [[row[index] for index in kept] for row in table.rows],
    )
