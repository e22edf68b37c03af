"""The tables that figures are drawn from: one copy for all figures of the page, as plain rows.

Accuracies are in percent and rounded to what a figure can show; what does not exist is None. Curves
are thinned, as a page holds those of every run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from smallbatch.analysis.cells import MAIN_FRACTION, STUDY_KEYS, is_reliable
from smallbatch.analysis.frames import ADAMW
from smallbatch.analysis.scaling import RULES
from smallbatch.analysis.stability import EDGE
from smallbatch.report.labels import DASH, power_of_two, spread
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.analysis.limit_band import LimitBand
    from smallbatch.analysis.scaling import Scaling
    from smallbatch.analysis.seeds import Floats
    from smallbatch.analysis.stability import LimitFit
    from smallbatch.report.answer import Card

Row = dict[str, Any]

MOST_POINTS = 40
"""Of a curve; of longer ones evenly spaced points are kept, and the last."""

_DIGITS = 6
_RULES = {"linear": "linear rule, η ∝ m", "square root": "square-root rule, η ∝ √m"}
_KEY = [*STUDY_KEYS, "batch_size", "bn_batch_size", "base_lr"]


def cell_rows(cells: pd.DataFrame, best: pd.DataFrame) -> list[Row]:
    """A row per cell.

    Args:
        cells: As `summarise_cells` or `bn_cells` makes them.
        best: The best cell of each m, as `best_cells` makes them; empty for `bn_cells`.
    """
    keys = set(map(_key, best.to_dict("records")))
    extent = cells.groupby(STUDY_KEYS)["accuracy"].agg(["min", "max"])
    rows: list[Row] = []
    for cell in cells.to_dict("records"):
        low, high = extent.loc[(cell["dataset"], cell["study"])]
        accuracy, bottom = cell["accuracy"], cell["min_accuracy"]
        n, lost = int(cell["n_seeds"]), int(cell["n_diverged"])
        some = not math.isnan(accuracy)
        row: Row = {
            "key": _key(cell),
            "dataset": cell["dataset"],
            "study": cell["study"],
            "m": int(cell["batch_size"]),
            "base_lr": cell["base_lr"],
            "base_lr_text": repr(float(cell["base_lr"])),  # as MLflow has it
            "lr": cell["lr"],
            "accuracy": _percent(accuracy),
            "low": _percent(bottom),
            "high": _percent(cell["max_accuracy"]),
            "chance": _percent(cell["chance"]),
            "n_seeds": n,
            "n_diverged": lost,
            "reliable": bool(cell.get("reliable", False)),
            "best": _key(cell) in keys,
            "all_diverged": lost == n,
            # A seed diverged, so that the bar from the worst seed to the best has no lower end.
            "lost": some and math.isnan(bottom),
            "text": _cell_text(accuracy, n, lost),
            # Whether viridis is dark there: up to about 0.55 of its way white is easier to read.
            "dark": some and accuracy - low <= 0.55 * (high - low) and high > low,
            "seeds": spread(bottom, cell["max_accuracy"]),
            "outcome": _outcome(n, lost),
        }
        if "bn_batch_size" in cell:
            row["bn"] = int(cell["bn_batch_size"])
        rows.append(_labelled(row, cell["optimizer"]))
    return rows


def mark_answer(rows: list[Row], card: Card) -> None:
    """Put a star into the cell that a study's answer names, if it names one."""
    for row in rows:
        place = (row["dataset"], row["study"], row["m"], row["base_lr"])
        if place == (card.dataset, card.study, card.batch_size, card.base_lr):
            row["text"] = f"★ {row['text']}"


def range_rows(ranges: pd.DataFrame, cells: pd.DataFrame) -> list[Row]:
    """Rows of the reliable ranges: a bar per study, m and fraction, a dot for each reliable cell.

    Args:
        ranges: As `stable_ranges` makes them.
        cells: The cells of the same studies.
    """
    groups = {
        (dataset, study, m): group
        for (dataset, study, m), group in cells.groupby([*STUDY_KEYS, "batch_size"])
    }
    rows: list[Row] = []
    for each in ranges[ranges["n_reliable"] > 0].to_dict("records"):
        eta = each["optimizer"] == ADAMW
        m, own = int(each["batch_size"]), groups[each["dataset"], each["study"], each["batch_size"]]
        place: Row = {
            "dataset": each["dataset"],
            "study": each["study"],
            "m": m,
            "fraction": each["fraction"],
            "main": each["fraction"] == MAIN_FRACTION,
            "eta": eta,
            "range": DASH if eta else _ends(each["lower"], each["upper"]),
            "range_lr": _ends(each["lower_lr"], each["upper_lr"]),
        }
        rows.append(
            {
                **place,
                "part": "bar",
                **{name: each[name] for name in ("lower", "upper", "lower_lr", "upper_lr")},
                "lower_edge": each["lower_limit"] == EDGE,
                "upper_edge": each["upper_limit"] == EDGE,
            }
        )
        found = own.loc[is_reliable(own["reach"], each["fraction"]), ["base_lr", "lr"]]
        rows += [
            {**place, "part": "dot", "at": base_lr, "at_lr": lr}
            for base_lr, lr in found.itertuples(index=False, name=None)
        ]
    return rows


def fit_rows(
    dataset: str, study: str, ranges: pd.DataFrame, fit: LimitFit | None, band: LimitBand | None
) -> list[Row]:
    """The fitted upper end of one study at each m, with the band of its resamples if known."""
    if fit is None:
        return []
    batch_sizes: list[int] = sorted(ranges["batch_size"].unique())
    rows: list[Row] = []
    for m in batch_sizes:
        limit, low, high = float(fit(m)), _at(band, m, "low"), _at(band, m, "high")
        row: Row = {"dataset": dataset, "study": study, "m": int(m)}
        for name, value in (("limit", limit), ("low", low), ("high", high)):
            row[name] = value
            row[f"{name}_lr"] = None if value is None else m * value
        rows.append(row)
    return rows


def rule_rows(cells: pd.DataFrame, found: Scaling | None) -> list[Row]:
    """What rules of thumb give for η at each m of one study, as far as its grid goes."""
    if found is None:
        return []
    low, high = cells["lr"].min(), cells["lr"].max()
    dataset, study = (str(cells[key].iloc[0]) for key in STUDY_KEYS)
    sizes: list[int] = sorted(cells["batch_size"].unique().tolist())
    return [
        {"dataset": dataset, "study": study, "m": m, "rule": _RULES[rule], "lr": lr}
        for rule in RULES
        for m in sizes
        if rule in _RULES and low <= (lr := found.by_rule(rule, m)) <= high
    ]


def curve_rows(curves: pd.DataFrame, runs: pd.DataFrame) -> list[Row]:
    """A row per m and epoch of one study's curves; a lost median has no value.

    Args:
        curves: Of one study, as `median_curves` makes them.
        runs: Its runs, of which the time of training is taken.
    """
    highest = _highest(curves)
    rows: list[Row] = []
    for m, own in curves.groupby("batch_size"):
        taken = runs[(runs["batch_size"] == m) & (runs["base_lr"] == own["base_lr"].iloc[0])]
        seconds = taken["seconds"].median() / own["epoch"].max()
        whole = own[own["test_accuracy"].notna() | own["train_loss"].notna()]
        kept = whole.iloc[_thinned(len(whole))]
        last = whole["epoch"].max() if own["diverged"].any() else None
        rows += [
            {
                "dataset": each["dataset"],
                "study": each["study"],
                "m": int(str(m)),
                "frame": f"m = {m}",
                "epoch": int(each["epoch"]),
                "updates": int(each["updates"]),
                "seconds": _rounded(seconds * each["epoch"]),
                "accuracy": _percent(each["test_accuracy"]),
                "loss": _rounded(min(each["train_loss"], highest)),
                # From here on the median falls on a diverged run.
                "diverges": bool(each["epoch"] == last),
            }
            for each in kept.to_dict("records")
        ]
    return rows


def run_rows(runs: pd.DataFrame, history: pd.DataFrame) -> list[Row]:
    """A row per run, with its outcome and its curve of test accuracy."""
    curves = dict(iter(history.groupby("run")))
    rows: list[Row] = []
    for run in runs.sort_values([*_KEY, "seed"]).to_dict("records"):
        curve = curves[run["run"]].sort_values("epoch")
        kept = _thinned(len(curve))
        rows.append(
            {
                "key": _key(run),
                "seed": int(run["seed"]),
                "said": _run_text(run),
                "epochs": curve["epoch"].iloc[kept].tolist(),
                "accuracies": [_percent(value) for value in curve["test_accuracy"].iloc[kept]],
            }
        )
    return rows


def columnar(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as a list per column, which takes a third of the space."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _key(cell: dict[Any, Any]) -> str:
    parts = [cell["dataset"], cell["study"], f"m{cell['batch_size']}", f"{cell['base_lr']:.9g}"]
    # Only studies with several BN batch sizes have cells that differ in them alone.
    several = cell.get("bn_batch_sizes", cell.get("bn_batch_size"))
    if not pd.isna(several):
        parts.append(f"b{cell['bn_batch_size']:.0f}")
    return " ".join(parts)


def _cell_text(accuracy: float, n: int, lost: int) -> str:
    if math.isnan(accuracy):
        return "×" if lost == n else f"×{lost}"
    return f"{100 * accuracy:.0f}" + (f" ×{lost}" if lost else "")


def _outcome(n: int, lost: int) -> str:
    if lost == n:
        return "diverged" if n == 1 else f"all {n} seeds diverged"
    return f"{n - lost} of {count(n, 'seed')} finished"


def _run_text(run: dict[Any, Any]) -> str:
    if run["outcome"] == "diverged":
        return f"diverged at update {run['diverged_at']:.0f} of {run['updates']}"
    accuracy = run["reported_accuracy"]
    return "finished, no accuracy" if math.isnan(accuracy) else f"{100 * accuracy:.1f} %"


def _labelled(row: Row, optimizer: str) -> Row:
    # A row of the heat map for each label: learning rates that differ must not share one.
    labels = {f"{name}_label": power_of_two(row[name], _DIGITS) for name in ("base_lr", "lr")}
    rate = f"η̃ = {labels['base_lr_label']}"
    if optimizer == ADAMW:
        rate, labels["base_lr_label"] = f"η = {labels['lr_label']}", DASH
    frame = f"m = {row['m']}" if "bn" in row else rate
    return {**row, **labels, "frame": frame}


def _ends(low: float, high: float) -> str:
    return power_of_two(low) if low == high else f"{power_of_two(low)} … {power_of_two(high)}"


def _at(band: LimitBand | None, m: int, end: str) -> float | None:
    if band is None:
        return None
    values: Floats = getattr(band, end)
    found = np.flatnonzero(band.batch_sizes == m)
    return float(values[found[0]]) if len(found) else None


def _highest(curves: pd.DataFrame) -> float:
    """The largest loss to draw, so that one about to diverge does not flatten the others."""
    values = curves.dropna(subset=["train_loss"])
    last = curves.groupby("batch_size")["epoch"].transform("max").loc[values.index]
    whole = values.loc[values["epoch"] == last, "batch_size"]
    finished = values.loc[values["batch_size"].isin(whole), "train_loss"]
    return 1.5 * float(finished.max()) if len(finished) else math.inf


def _thinned(n: int) -> list[int]:
    """The positions to keep: evenly spaced ones, with the first and the last."""
    return np.unique(np.linspace(0, n - 1, min(n, MOST_POINTS)).round().astype(int)).tolist()


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else round(100 * value, 2)


def _rounded(value: float, digits: int = 4) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
