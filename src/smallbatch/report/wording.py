"""Sentences made from the data; they claim no more than the data shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smallbatch.analysis.cells import MAIN_FRACTION
from smallbatch.analysis.convergence import common_base_lr
from smallbatch.analysis.frames import on_lr_axis
from smallbatch.analysis.sampling import (
    beyond_chance,
    chance,
    images_tested,
    interval,
    least_beyond_chance,
    leaves_open,
)
from smallbatch.analysis.stability import EDGE
from smallbatch.report.labels import both_rates, listed, percent, power_of_two, rate_of, spread
from smallbatch.text import count

if TYPE_CHECKING:
    import pandas as pd

    from smallbatch.analysis.limit_band import LimitBand
    from smallbatch.analysis.stability import LimitFit

POOR = 1.0
"""Octaves of the residual from which on a fit is called poor: a factor of two either way."""

STALE = 0.05
"""Population accuracy above the reported one that running statistics which lag may explain."""


def best_sentence(winner: dict[Any, Any], n_test: int | None) -> str:
    """The best cell of one study, and what its test set leaves open.

    Args:
        winner: The study's row of `best_by_study`.
        n_test: The number of test images, None if not recorded.
    """
    n_seeds = int(winner["n_seeds"])
    seeds = (
        "one seed, so nothing is known about its spread"
        if n_seeds == 1
        else f"median of {n_seeds} seeds, {spread(winner['min_accuracy'], winner['max_accuracy'])}"
    )
    text = (
        f"The highest reported accuracy is {percent(winner['accuracy'])} ({seeds}), at "
        f"m = {winner['batch_size']} with {both_rates(winner)}."
    )
    if n_test is not None and leaves_open(winner["accuracy"], n_test):
        open_ = spread(*interval(winner["accuracy"], n_test))
        text += (
            f" The test set has only {count(n_test, 'image')}: for further images of the same kind "
            f"this leaves {open_} (95 % interval), however many seeds there are."
        )
    return text


def nothing_learned(cells: pd.DataFrame, runs: pd.DataFrame) -> str:
    """What to say of a study whose best cell is not beyond chance, see `sampling.beyond_chance`.

    Args:
        cells: The cells of the study; at least one has an accuracy.
        runs: All runs of the study.
    """
    classes, n_test = int(runs["classes"].min()), images_tested(runs)
    images = f" of {n_test:,} test images" if n_test else ""
    best = float(cells["accuracy"].max())
    found = (
        f"the best of {count(len(cells), 'cell')} is right on {percent(best)}{images}, and "
        f"guessing one of {classes} classes on {percent(chance(runs))}"
    )
    least = least_beyond_chance(runs)
    if least is not None:
        few = "so few images can never show more than luck"
        found += f"; {few if least > 1 else f'{percent(least)} would be more than luck'}"
    found += "."
    population = float(cells["population_test_accuracy"].max())
    if beyond_chance(population, runs):
        return (
            f"No reported accuracy is beyond chance: {found} But batch norm's running statistics "
            "are at fault: with statistics recomputed over the training set, the final weights of "
            f"one cell are right on {percent(population)}. Train longer, or take a smaller m."
        )
    return (
        "Nothing here learned beyond chance: train longer, or try other learning rates. "
        f"{found[0].upper()}{found[1:]}"
    )


def range_sentence(ranges: pd.DataFrame) -> str:
    """How the reliable range of one study changes from the smallest m to the largest."""
    main = ranges[ranges["fraction"] == MAIN_FRACTION].sort_values("batch_size")
    some: list[dict[Any, Any]] = main[main["n_reliable"] > 0].to_dict("records")
    if not some:
        kind = "learning rate" if on_lr_axis(ranges) else "base learning rate"
        return f"No {kind} converges reliably at any batch size."
    shown = [some[0]] if len(some) == 1 else [some[0], some[-1]]
    ends = [
        f"{_span(row)} at m = {row['batch_size']} ({count(row['n_reliable'], 'value')} of the grid"
        f"{_edges_of(row)})"
        for row in shown
    ]
    rate = rate_of(ranges)
    text = f"The reliable range is {rate} = {listed(ends)}."
    none = [str(value) for value in main.loc[main["n_reliable"] == 0, "batch_size"]]
    return text + (f" No {rate} is reliable at m = {listed(none)}." if none else "")


def warnings(
    best: pd.DataFrame, ranges: pd.DataFrame, cells: pd.DataFrame, runs: pd.DataFrame
) -> list[str]:
    """What limits the reading of one study that learned: edges of the grid, holes, single seeds.

    Args:
        best: The study's rows of `best_cells`.
        ranges: Its rows of `stable_ranges`.
        cells: Its rows of `summarise_cells`.
        runs: Its runs.
    """
    lines: list[str] = []
    rate = rate_of(cells)
    # What weights learned may show only with recomputed statistics; see `stale_statistics`.
    reached = best[["accuracy", "population_test_accuracy"]].max(axis=1)
    chosen = zip(best["batch_size"], reached, strict=True)
    at_chance = [str(m) for m, accuracy in chosen if not beyond_chance(accuracy, runs)]
    if at_chance:
        lines.append(
            f"At m = {listed(at_chance)} not even the best cell is beyond chance: nothing was "
            f"learned there, and which {rate} is best means nothing."
        )
    for edge, word, side in (
        ("lower", "lowest", "below"),
        ("upper", "highest", "above"),
        ("only", "only", "outside"),
    ):
        at_edge = [str(value) for value in best.loc[best["grid_edge"] == edge, "batch_size"]]
        if at_edge:
            lines.append(
                f"The best {rate} is the {word} one tried at m = {listed(at_edge)}: the optimum "
                f"may lie {side} the grid, so the accuracy given there is a lower bound."
            )
    lost = [str(value) for value in best.loc[best["n_diverged"] > 0, "batch_size"]]
    if lost:
        lines.append(
            f"Some seeds of the best cell diverged at m = {listed(lost)}: its {rate} is at the "
            "limit of stability."
        )
    main = ranges[(ranges["fraction"] == MAIN_FRACTION) & (ranges["n_reliable"] > 0)]
    for end, word in (("lower", "below"), ("upper", "above")):
        bounds = [str(value) for value in main.loc[main[f"{end}_limit"] == EDGE, "batch_size"]]
        if bounds:
            lines.append(
                f"The reliable range reaches the {end} edge of the grid at m = {listed(bounds)} "
                f"and may go on {word} it; its width there is a lower bound."
            )
    holed = [str(row["batch_size"]) for row in main.to_dict("records") if len(row["holes"])]
    if holed:
        lines.append(
            f"The range at m = {listed(holed)} has unreliable {rate} inside (see the table)."
        )
    return lines + stale_statistics(best) + single_seeds(cells)


def stale_statistics(best: pd.DataFrame) -> list[str]:
    """A line where batch norm's running statistics hide what the weights have learned.

    Args:
        best: One study's rows of `best_cells`. A cell counts if its population accuracy is above
            the reported one by more than 5 points, and by more than its seeds are apart.
    """
    lowest = best["min_accuracy"].fillna(best["accuracy"])  # NaN where a seed diverged
    gained = best["population_test_accuracy"] - best["accuracy"]
    lagging = best[(gained > STALE) & (gained > best["max_accuracy"] - lowest)]
    if lagging.empty:
        return []
    found = [
        f"{percent(row['population_test_accuracy'])} instead of {percent(row['accuracy'])} at "
        f"m = {row['batch_size']}"
        for row in lagging.to_dict("records")
    ]
    line = (
        "Batch norm's running statistics lag behind the weights, as they do with few updates: "
        "with statistics recomputed over the training set, the best cell's final weights reach "
        f"{listed(found)}. Train longer, or take a smaller m."
    )
    return [line]


def single_seeds(cells: pd.DataFrame) -> list[str]:
    """A line where cells have one seed."""
    single = cells["n_seeds"].eq(1)
    if not single.any():
        return []
    which = "Every cell has" if single.all() else "Some cells have"
    return [f"{which} one seed only: differences may be chance."]


def fit_sentence(fit: LimitFit | None, band: LimitBand | None) -> str:
    """What the fit of the upper ends says about one study."""
    if fit is None:
        return (
            "The upper ends are not fitted: fewer than three batch sizes have one inside the grid."
        )
    poor = "" if fit.rms_octaves <= POOR else " The fit is poor: trust the single ends more."
    quality = (
        f"({count(fit.n_points, 'batch size')}, root mean square residual "
        f"{fit.rms_octaves:.2f} octaves; an end is known to one step of the grid)"
    )
    if fit.m_star_bound == "upper":
        return f"No fall of the upper end with m can be told from these ends {quality}.{poor}"
    if fit.m_star_bound == "lower":
        return (
            f"The upper end falls as 1/m over all of these batch sizes {quality}: it is a "
            f"constant highest η of about {fit.base_lr_0 * fit.m_star:.2g}.{poor}"
        )
    return (
        f"Fitted upper end: highest η̃ at m = {fit.base_lr_0:.3g} / (1 + m/{fit.m_star:.3g}) "
        f"{quality}. "
        f"By this fit the limit is a constant η̃ well below m* = {fit.m_star:.3g}, and a constant η "
        f"of about {fit.base_lr_0 * fit.m_star:.2g} well above it.{poor}{_interval(band)}"
    )


def _interval(band: LimitBand | None) -> str:
    if band is None:
        return ""
    return (
        " Middle 95 % of m* over resamples of the seeds: "
        f"{band.m_star_low:.3g} … {band.m_star_high:.3g} "
        "(what the grid's step hides is not in it)."
    )


def convergence_sentence(base_lr: float, cells: pd.DataFrame) -> str:
    """Why the convergence curves are shown at this η̃."""
    own, rate = cells[cells["base_lr"] == base_lr], rate_of(cells)
    reliable = f"{int(own['reliable'].sum())} of {count(len(own), 'batch size')}"
    if len(own) < cells["batch_size"].nunique():
        reliable += " that it was tried at"
    if base_lr != common_base_lr(cells):
        return (
            f"{rate} = {power_of_two(base_lr)}, as in the paper's Fig. 4 (reliable at {reliable})"
        )
    if not cells["reliable"].any():
        why = "that of the best cell" if cells["accuracy"].notna().any() else "the lowest tried"
        return (
            f"{rate} = {power_of_two(base_lr)}, {why}, as no {rate} is reliable at any batch size"
        )
    return (
        f"{rate} = {power_of_two(base_lr)}, the {rate} that is reliable at the most batch sizes "
        f"({reliable}; of several such, the largest)"
    )


def _span(row: dict[Any, Any]) -> str:
    ends = [power_of_two(row["lower"]), power_of_two(row["upper"])]
    return ends[0] if ends[0] == ends[1] else " … ".join(ends)


def _edges_of(row: dict[Any, Any]) -> str:
    ends = [name for name in ("lower", "upper") if row[f"{name}_limit"] == EDGE]
    return f", {listed(ends)} end on the grid's edge" if ends else ""
