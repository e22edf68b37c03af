"""What the page says of a study of BN batch and SGD batch sizes (paper, Figs. 13 and 14)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from smallbatch.analysis.sampling import chance, learned
from smallbatch.report.labels import listed, percent, power_of_two, rate_of
from smallbatch.report.tables import Table, seeds_of, why_none
from smallbatch.report.wording import single_seeds
from smallbatch.text import count

if TYPE_CHECKING:
    import pandas as pd


def best_sentence(cells: pd.DataFrame, runs: pd.DataFrame) -> str:
    """Which BN batch size came out best at each m, and whether its seeds settle that.

    Args:
        cells: The cells of one study, as `analysis.ghost.bn_cells` makes them.
        runs: The runs of the study.
    """
    if cells["accuracy"].isna().all():
        why = why_none(runs)
        return f"{why[0].upper()}{why[1:]}."
    if not learned(cells, runs):
        best, guessing = float(cells["accuracy"].max()), percent(chance(runs))
        return (
            "Nothing here learned beyond chance: train longer, or try other learning rates. "
            f"The best cell is right on {percent(best)} of the test images, guessing on {guessing}."
        )
    by_m = [(int(str(m)), own) for m, own in cells.groupby("batch_size")]
    chosen = [_best_of(m, own) for m, own in by_m if own["accuracy"].notna().any()]
    none = [str(m) for m, own in by_m if own["accuracy"].isna().all()]
    text = f"Best BN batch size: {listed(chosen)}."
    if none:
        text += f" At m = {listed(none)} no cell has a median accuracy, as too many seeds diverged."
    return text


def base_lr_sentence(runs: pd.DataFrame) -> str:
    """Which learning rate each m of one study was trained at."""
    sources = runs["base_lr_from"].dropna()
    own, rate = len(sources) < len(runs), rate_of(runs)
    said = [
        f"Each m was trained at the {rate} that was best for it in {source} (chosen on the test "
        "set)."
        for source in sorted(set(sources))
    ]
    if own:
        said.append(
            f"Each m was trained at the {rate} of the study's own grid; of several, the best one "
            "is shown (chosen on the test set)."
        )
    if len(said) == 1:
        return said[0]
    names = [*sorted(set(sources)), *(["the study's own grid"] if own else [])]
    return (
        f"Batch sizes differ in where their {rate} is from: {listed(names)}. It is the best one "
        "there (chosen on the test set)."
    )


def _best_of(batch_size: int, own: pd.DataFrame) -> str:
    """The best BN batch size at one m, of equals the smallest; with those it is not sure of."""
    some = own.sort_values("bn_batch_size", ignore_index=True)
    top: dict[Any, Any] = max(
        some.dropna(subset=["accuracy"]).to_dict("records"), key=lambda row: row["accuracy"]
    )
    said = f"{top['bn_batch_size']} at m = {batch_size}"
    if len(own) == 1:
        return f"{said} (the only one tried)"
    lost = math.isnan(top["min_accuracy"])  # a seed diverged
    floor = top["accuracy"] if lost else top["min_accuracy"]
    rivals = some[(some["max_accuracy"] >= floor) & (some["bn_batch_size"] != top["bn_batch_size"])]
    near = [str(value) for value in rivals["bn_batch_size"]]
    return f"{said} (seeds of {listed(near)} overlap)" if near else said


def warnings(cells: pd.DataFrame) -> list[str]:
    """What limits the reading of one study: diverged runs, single seeds."""
    lost = int(cells["n_diverged"].sum())
    diverged = (
        f"{count(lost, 'run')} of these cells diverged: there {rate_of(cells)} is at, or beyond, "
        "the limit of stability."
    )
    return [*([diverged] if lost else []), *single_seeds(cells)]


def cells_table(cells: pd.DataFrame) -> Table:
    """One study's cells, a row each."""
    rows = [
        [
            str(row["batch_size"]),
            str(row["bn_batch_size"]),
            power_of_two(row["base_lr"]),
            percent(row["accuracy"]),
            seeds_of(row),
            f"{row['n_seeds'] - row['n_diverged']} of {row['n_seeds']}",
        ]
        for row in cells.sort_values(["batch_size", "bn_batch_size"]).to_dict("records")
    ]
    headers = (
        "SGD batch m",
        "BN batch",
        rate_of(cells),
        "accuracy (median)",
        "worst … best seed",
        "seeds finished",
    )
    return Table("Every SGD batch size with every BN batch size.", headers, rows)
