"""The tables of the page, as text for readers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.analysis.cells import FRACTIONS, MAIN_FRACTION
from smallbatch.analysis.stability import BELOW, DIVERGED, EDGE, fit_upper_limit
from smallbatch.report.labels import DASH, listed, percent, points, power_of_two, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

_LIMITS = {EDGE: "edge of the grid", DIVERGED: "diverges", BELOW: "accuracy below τ", "": DASH}
_EDGES = {"lower": "lowest tried", "upper": "highest tried", "only": "only one tried", "": ""}
_NORMS = {
    "none": "none",
    "batch": "batch norm",
    "batch_conv": "batch norm after convolutions",
    "ghost": "ghost batch norm",
    "group": "group norm",
}


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


def best_table(best: pd.DataFrame, chosen_on: str) -> Table:
    """One study's best cell at each batch size."""
    rows = [
        [
            str(row["batch_size"]),
            power_of_two(row["base_lr"]),
            power_of_two(row["lr"]),
            percent(row["accuracy"]),
            spread(row["min_accuracy"], row["max_accuracy"]),
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
        "η = m·η̃",
        "accuracy (median)",
        "worst … best seed",
        "seeds finished",
        "final training accuracy",
        "generalisation gap (points)",
        "with recomputed BN statistics",
        "η̃ at the edge of the grid",
    )
    how = (
        "the best η̃ chosen on the test set, as the paper does"
        if chosen_on == "test"
        else "the best η̃ chosen on the validation split; accuracies are the test set's"
    )
    return _without_empty(Table(f"Best cell at each batch size, {how}.", headers, rows))


def range_table(ranges: pd.DataFrame) -> Table:
    """One study's reliable range at each batch size, at the main fraction."""
    rows = [
        [
            str(row["batch_size"]),
            power_of_two(row["lower"]),
            power_of_two(row["upper"]),
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
        "η̃ reliable",
        "lowest η",
        "highest η",
        "next below",
        "next above",
        "holes",
    )
    threshold = ranges.loc[ranges["fraction"] == MAIN_FRACTION, "threshold"].iloc[0]
    caption = (
        f"Base learning rates that converge reliably (every seed at least {percent(threshold)})."
    )
    return _without_empty(Table(caption, headers, rows))


def fraction_table(ranges: pd.DataFrame) -> Table:
    """One study's reliable range of η̃ at each batch size, a column per fraction."""
    rows = [
        [str(batch_size), *(_range_text(group, fraction) for fraction in FRACTIONS)]
        for batch_size, group in ranges.groupby("batch_size")
    ]
    thresholds = ranges.groupby("fraction")["threshold"].first()
    headers = tuple(f"{value:g} (τ = {percent(float(thresholds[value]))})" for value in FRACTIONS)
    caption = (
        "The reliable range of η̃ if the threshold lies elsewhere between chance (0) and the "
        "study's best cell (1)."
    )
    return Table(caption, ("m", *headers), rows)


def fit_table(ranges: pd.DataFrame) -> Table:
    """One study's fitted upper end at each fraction."""
    rows: list[list[str]] = []
    for fraction, group in ranges.groupby("fraction"):
        fit = fit_upper_limit(group)
        bounds = {"": "", "lower": "at most ", "upper": "at least "}
        rows.append(
            [
                f"{fraction:g}",
                f"{fit.base_lr_0:.3g}" if fit else DASH,
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
    rows = [
        [
            row["study"],
            percent(row["accuracy"]),
            spread(row["min_accuracy"], row["max_accuracy"]),
            str(row["batch_size"]),
            power_of_two(row["base_lr"]),
            power_of_two(row["lr"]),
            listed([str(value) for value in row["overlapping"]]) or "none",
            _run_counts(runs[runs["study"] == row["study"]]),
        ]
        for row in winners.to_dict("records")
    ]
    for study in sorted(set(runs["study"]) - set(winners["study"])):
        counts = _run_counts(runs[runs["study"] == study])
        rows.append([study, "no finished run", DASH, DASH, DASH, DASH, DASH, counts])
    headers = (
        "study",
        "best accuracy",
        "worst … best seed",
        "at m",
        "η̃",
        "η",
        "m whose seeds overlap",
        "runs (diverged)",
    )
    return Table("Best cell of each study, chosen on the test set.", headers, rows)


def settings_table(runs: pd.DataFrame) -> Table:
    """The settings of one study: data, model, schedule, grid."""
    first: dict[Any, Any] = runs.iloc[0].to_dict()
    norm = _NORMS.get(str(first["norm"]), str(first["norm"]))
    if pd.notna(first["bn_batch_sizes"]):
        sizes = sorted(runs["bn_batch_size"].astype(int).unique())
        norm += f" over {', '.join(map(str, sizes))} examples"
    elif pd.notna(first["bn_batch_size"]):
        norm += f" over {first['bn_batch_size']:.0f} examples"
    decays = listed([f"{100 * float(share):g} %" for share in json.loads(first["milestones"])])
    schedule = f"η × {first['lr_decay']:g} at {decays} of the updates" if decays else "constant η"
    if first["warmup"]:
        schedule += f", warm-up over the first {100 * first['warmup']:g} %"
    batch_sizes = sorted(runs["batch_size"].unique())
    base_lrs = sorted(runs["base_lr"].unique())
    examples = [
        f"{first[key]} {name}"
        for key, name in (
            ("n_train", "training"),
            ("n_validation", "validation"),
            ("n_test", "test"),
        )
        if pd.notna(first[key]) and first[key] > 0
    ]
    rows = [
        ["Data", f"{first['dataset']}, {first['classes']} classes{_scale(first['scale'])}"],
        ["Examples", listed(examples) or "not recorded"],
        ["Model", f"{first['model']}, {first['parameters']:,} parameters"],
        ["Normalisation", norm],
        ["Augmentation", "padding, random crop, random flip" if first["augment"] else "none"],
        ["Budget", _budget(runs)],
        ["Optimiser", f"plain SGD, weight decay {first['weight_decay']:g}, {schedule}"],
        ["Precision", str(first["precision"])],
        ["Batch sizes", ", ".join(str(value) for value in batch_sizes)],
        ["Base learning rates", ", ".join(power_of_two(value) for value in base_lrs)],
        ["Seeds per cell", _seed_counts(runs)],
        ["Runs (diverged)", _run_counts(runs)],
    ]
    return Table("What was run.", ("item", "value"), rows, prose=True)


def _range_text(group: pd.DataFrame, fraction: float) -> str:
    row: dict[Any, Any] = group[group["fraction"] == fraction].to_dict("records")[0]
    if not row["n_reliable"]:
        return "none"
    ends = [power_of_two(row["lower"]), power_of_two(row["upper"])]
    text = ends[0] if row["n_reliable"] == 1 else " … ".join(ends)
    return text + (f" ({len(row['holes'])} missing)" if len(row["holes"]) else "")


def _budget(runs: pd.DataFrame) -> str:
    """The epochs of every run, or the updates if these are what all runs have in common."""
    epochs = runs["epochs"]
    if runs["budget"].iloc[0] == "epochs":
        return f"{epochs.iloc[0]} epochs for every run"
    updates = f"{runs['updates'].min()}"
    if runs["updates"].nunique() > 1:
        updates += f" to {runs['updates'].max()}"
    return f"{updates} updates for every run ({epochs.min()} to {epochs.max()} epochs)"


def _scale(scale: object) -> str:
    return f", scale {scale}" if isinstance(scale, str) else ""


def _run_counts(runs: pd.DataFrame) -> str:
    return f"{len(runs)} ({runs['outcome'].eq('diverged').sum()})"


def _seed_counts(runs: pd.DataFrame) -> str:
    cells = runs.groupby(["batch_size", "bn_batch_size", "base_lr"], dropna=False)
    counts = sorted(cells.size().unique())
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


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
