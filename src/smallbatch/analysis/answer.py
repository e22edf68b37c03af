"""Which batch size and base learning rate a study speaks for, and which others may be as good.

A batch size is *worse* if some other is better than it: its best cell is compared with the best of
all other batch sizes, chosen on other seeds (`inference`), and the difference has a lower bound
above 0. Of the batch sizes that are left, the runs do not tell which is the best. The best one is
then seldom called worse, however many are compared: only its own comparison can do that.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smallbatch.analysis.cells import MAIN_FRACTION, summarise_cells
from smallbatch.analysis.comparisons import best_is_in
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.mixed import differing_settings
from smallbatch.analysis.power import MOST_SEEDS, seeds_needed
from smallbatch.analysis.seeds import SeedArray, seed_array
from smallbatch.analysis.stability import stable_ranges

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from smallbatch.analysis.comparisons import Comparison
    from smallbatch.analysis.inference import Noise
    from smallbatch.analysis.seeds import Floats

LEAST_SEEDS = 3
"""With fewer seeds nothing is compared, as claims are not judged then."""

TOLD = 0.02
"""The difference of accuracies for which seeds are counted: two percentage points."""

SHARE = 4
"""A batch size is called worse at the level of `inference.ALPHA` divided by this.

The noise of one or two batch sizes may be far above the study's, which the bound knows in part
(docs/decisions.md, Answers, has how often it errs).
"""

Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Rivalry:
    """A batch size compared with all others; arrays (...) if several data sets are at once.

    Attributes:
        behind: The best accuracy of the others less its own best, as observed.
        at_least: A lower bound of that. Above 0 the batch size is worse.
        at_most: An upper bound. Those of all batch sizes hold at once, so also for one that is
            picked by its accuracy.
        support: The comparison whose noise tells how many seeds would be needed.
    """

    behind: Floats
    at_least: Floats
    at_most: Floats
    support: Comparison


@dataclass(frozen=True)
class Standing:
    """One batch size compared with all others.

    Attributes:
        batch_size: m.
        verdict: "worse" than some other; "open" if it may be the best; "unusable" if in each of its
            cells a seed diverged, so that there is nothing to compare.
        behind: By how much its best cell is below the best of all others, as observed (mean over
            seeds, fraction of 1); negative if it is ahead of them.
        at_least: A lower bound of that.
        at_most: An upper bound of it; see `Rivalry`.
        on_edge: Whether its best η̃ is the lowest or highest tried, so that another may be better.
    """

    batch_size: int
    verdict: Literal["worse", "open", "unusable"]
    behind: float
    at_least: float
    at_most: float
    on_edge: bool


@dataclass(frozen=True)
class Answer:
    """What one study speaks for.

    Attributes:
        dataset, study: Their names.
        chosen_on: The split whose accuracies decide: "validation" if there is one.
        cell: The cell with the highest median over seeds, as `best_by_study` gives it; None if no
            cell has a median. Its accuracies are the test set's.
        reliable: The row of `stable_ranges` of that cell's m, at its main fraction; None without a
            cell.
        batch_sizes: All m that were run, ascending.
        cells: The number of cells that were run.
        seeds: The number of seeds that every cell has.
        differing: Settings in which the study's columns differ; they are then not compared.
        standings: Every m with an accuracy, ascending; empty if nothing is compared.
        seeds_needed: How many seeds would tell a difference of `TOLD`: the median over the other
            batch sizes that are open, a rough number. None if there is no such batch size, or above
            `MOST_SEEDS`.
        near_base_lrs: The other η̃ at the cell's m that may be as good as its own, ascending, by the
            same comparison; none if nothing is compared.
        n_chosen_on: The number of images that the choice was made on; None if not recorded.
    """

    dataset: str
    study: str
    chosen_on: Split
    cell: dict[Any, Any] | None
    reliable: dict[Any, Any] | None
    batch_sizes: tuple[int, ...]
    cells: int
    seeds: int
    differing: tuple[str, ...]
    standings: tuple[Standing, ...]
    seeds_needed: int | None
    near_base_lrs: tuple[float, ...]
    n_chosen_on: int | None


def answer(runs: pd.DataFrame) -> Answer:
    """Which batch size and base learning rate one study speaks for.

    Args:
        runs: The runs of one study, as `load_results` makes them, not one of several BN batch
            sizes.

    Raises:
        UserError: Two runs have the same place in the grid.
    """
    cells = summarise_cells(runs)
    split = choosing_split(cells)
    winners = best_by_study(best_cells(cells, split)).to_dict("records")
    cell = winners[0] if winners else None
    array = seed_array(_as_reported(runs, split))
    differing = tuple(differing_settings(runs))
    rivals: dict[int, Rivalry] = {}
    if cell is not None and not differing and array.n >= LEAST_SEEDS:
        rivals = compared(array)
    standings = _standings(array, rivals)
    return Answer(
        dataset=str(runs["dataset"].iloc[0]),
        study=str(runs["study"].iloc[0]),
        chosen_on=split,
        cell=cell,
        reliable=_reliable(cells, cell),
        batch_sizes=tuple(int(m) for m in array.batch_sizes),
        cells=len(cells),
        seeds=array.n,
        differing=differing,
        standings=standings,
        seeds_needed=_seeds_needed(array, rivals, standings, cell),
        near_base_lrs=_near_base_lrs(array, cell) if rivals and cell is not None else (),
        n_chosen_on=_images(runs, split),
    )


def choosing_split(cells: pd.DataFrame) -> Split:
    """The split that the choice is made on: validation if there, too, every cell has a median.

    Args:
        cells: As `summarise_cells` makes them.
    """
    known = cells[["accuracy", "validation_accuracy"]].notna().to_numpy()
    both, some = known.all(axis=1), known.any(axis=1)
    return "validation" if some.any() and (both == some).all() else "test"


def against_others(rows: Sequence[Floats], of: Noise) -> list[Rivalry]:
    """Each of two or more batch sizes compared with all others.

    Every cell of a batch size is compared with the others' best, chosen on other seeds, and the
    least difference counts (`best_is_in`). The noise of the study adds to that of three or so
    differences: without it three seeds would tell hardly anything.

    Args:
        rows: The cells (..., C, S) of each batch size; C may differ.
        of: The study's noise.
    """
    found: list[Rivalry] = []
    for index, own in enumerate(rows):
        others = np.concatenate([*rows[:index], *rows[index + 1 :]], axis=-2)
        ahead = best_is_in(own, others, of, SHARE, margin=0.0)
        behind = best_is_in(others, own, of, len(rows), margin=0.0)
        found.append(Rivalry(behind.effect, -ahead.high, behind.high, behind))
    return found


def compared(array: SeedArray) -> dict[int, Rivalry]:
    """The usable batch sizes of a study compared, by their index; none if fewer than two are."""
    kept = np.flatnonzero(array.usable.any(axis=1))
    if len(kept) < 2:
        return {}
    found = against_others([array.cells_at(int(index)) for index in kept], array.noise())
    return dict(zip(kept.tolist(), found, strict=True))


def _near_base_lrs(array: SeedArray, cell: dict[Any, Any]) -> tuple[float, ...]:
    """The other η̃ at one m that are not worse than another there; see `against_others`."""
    (row,) = np.flatnonzero(array.batch_sizes == cell["batch_size"])
    usable = np.flatnonzero(array.usable[row])
    if len(usable) < 2:
        return ()
    cells = [array.values[row, index][np.newaxis] for index in usable]
    found = against_others(cells, array.noise())
    return tuple(
        float(array.columns[index])
        for index, rivalry in zip(usable, found, strict=True)
        if rivalry.at_least <= 0 and array.columns[index] != cell["base_lr"]
    )


def _images(runs: pd.DataFrame, split: Split) -> int | None:
    sizes = runs[f"n_{split}"].dropna()
    return int(sizes.min()) if len(sizes) and sizes.min() > 0 else None


def _as_reported(runs: pd.DataFrame, split: Split) -> pd.DataFrame:
    if split == "test":
        return runs
    return runs.assign(reported_accuracy=runs["reported_validation_accuracy"])


def _standings(array: SeedArray, rivals: dict[int, Rivalry]) -> tuple[Standing, ...]:
    if not rivals:
        return ()
    edges = array.at_the_edge()
    return tuple(
        Standing(int(m), "unusable", np.nan, np.nan, np.nan, bool(edges[index]))
        if (found := rivals.get(index)) is None
        else Standing(
            batch_size=int(m),
            verdict="worse" if found.at_least > 0 else "open",
            behind=float(found.behind),
            at_least=float(found.at_least),
            at_most=float(found.at_most),
            on_edge=bool(edges[index]),
        )
        for index, m in enumerate(array.batch_sizes)
        if array.ran[index].any()  # not where no run has an accuracy
    )


def _seeds_needed(
    array: SeedArray,
    rivals: dict[int, Rivalry],
    standings: Sequence[Standing],
    cell: dict[Any, Any] | None,
) -> int | None:
    needed = [
        seeds_needed(rivals[index].support, array.n, TOLD, k=SHARE) or MOST_SEEDS + 1
        for standing in standings
        for index in np.flatnonzero(array.batch_sizes == standing.batch_size).tolist()
        if standing.verdict == "open" and cell and standing.batch_size != cell["batch_size"]
    ]
    middle = median_low(needed) if needed else MOST_SEEDS + 1
    return middle if middle <= MOST_SEEDS else None


def _reliable(cells: pd.DataFrame, cell: dict[Any, Any] | None) -> dict[Any, Any] | None:
    if cell is None:
        return None
    ranges = stable_ranges(cells, [MAIN_FRACTION])
    (own,) = ranges[ranges["batch_size"] == cell["batch_size"]].to_dict("records")
    return own
