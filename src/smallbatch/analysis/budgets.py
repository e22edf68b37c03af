"""Which batch size is best for equal epochs, for equal updates, and for equal time.

The literature disagrees on small batches partly because budgets differ: with equal epochs a small
m makes more updates, with equal updates a large m sees more examples, and with equal time the
machine decides. Studies that differ in their epochs alone, a *family*, tell what each m reaches
under any of the three: a run of E epochs at m makes E·N/m updates and takes E·N/r seconds, where N
is the number of training examples and r how many of them the machine trains in a second at that m.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from smallbatch.analysis.answer import LEAST_SEEDS, compared
from smallbatch.analysis.frames import on_bn_axis
from smallbatch.analysis.inference import cross_fitted, dependence
from smallbatch.analysis.seeds import SeedArray, seed_array

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from smallbatch.analysis.answer import Rivalry
    from smallbatch.analysis.seeds import Floats

Budget = Literal["epochs", "updates", "seconds"]

BUDGETS: tuple[Budget, ...] = ("epochs", "updates", "seconds")

SHARED = [
    "model",
    "norm",
    "bn_batch_size",
    "augment",
    "weight_decay",
    "milestones",
    "lr_decay",
    "warmup",
    "precision",
    "optimizer",
    "momentum",
    "betas",
    "beta2_examples",
    "eps",
    "schedule",
]
"""Settings that the studies of a family have in common: all that make a run, but its epochs."""

LEAST = 3
"""Of so many different numbers of epochs at least is a family; between them accuracies are
interpolated."""

_ROUNDING = 1e-9
"""Amounts that differ by this share are the same."""

COLUMNS = ("dataset", "family", "budget", "amount", "batch_size", "epochs", "base_lr", "accuracy",
           "low", "high", "standing", "on_edge", "n_seeds")  # fmt: skip
"""Of the table that `compare_budgets` makes."""


@dataclass(frozen=True)
class Family:
    """Studies that differ in their epochs alone, on the seeds and η̃ that all their cells have.

    Attributes:
        dataset: The data set's name.
        name: What the studies' names begin with.
        studies: Their names.
        epochs: At each m, the epochs of the studies that were run there, ascending: K or more.
        accuracies: At each m, of these studies' cells (K, C, S); chance where a seed diverged.
        usable: At each m, whether all seeds finished (K, C).
        base_lrs: η̃, under AdamW η, ascending (C,).
        seeds: The seeds (S,).
        examples: The number of training examples.
        chance: The accuracy of guessing.
    """

    dataset: str
    name: str
    studies: tuple[str, ...]
    epochs: dict[int, Floats]
    accuracies: dict[int, Floats]
    usable: dict[int, Floats]
    base_lrs: Floats
    seeds: np.ndarray[Any, np.dtype[np.int64]]
    examples: int
    chance: float

    def amounts(self, budget: Budget, rates: Mapping[int, float]) -> dict[int, Floats]:
        """What runs of these epochs cost at each m, (K,): epochs, updates, or seconds.

        Args:
            budget: What is counted.
            rates: Examples a second at each m; of seconds, an m without one is left out.
        """
        found: dict[int, Floats] = {}
        for m, epochs in self.epochs.items():
            if budget == "epochs":
                found[m] = epochs
            elif budget == "updates":
                found[m] = np.floor(epochs * self.examples / m)
            elif rates.get(m, 0.0) > 0:
                found[m] = epochs * self.examples / rates[m]
        return found


def families(runs: pd.DataFrame) -> Iterator[Family]:
    """The families among studies with η̃ (or η) as an axis.

    Args:
        runs: As `load_results` makes them.
    """
    wanted = runs[~on_bn_axis(runs)]
    for _, group in wanted.groupby(["dataset", "fingerprint", "protocol", *SHARED], dropna=False):
        if group["epochs"].nunique() >= LEAST and (found := _family(group)):
            yield found


def _family(runs: pd.DataFrame) -> Family | None:
    groups = sorted(runs.groupby(["epochs", "study"]), key=lambda it: it[0])
    arrays = [(int(own["epochs"].iloc[0]), seed_array(own)) for _, own in groups]
    seeds = set.intersection(*(set(array.seeds.tolist()) for _, array in arrays))
    rates = set.intersection(*(set(array.columns.tolist()) for _, array in arrays))
    if not seeds or not rates:
        return None
    by_m: dict[int, dict[int, SeedArray]] = {}
    for epochs, array in arrays:
        kept = array.of_seeds(seeds)
        columns = np.isin(array.columns, list(rates))
        for row, m in enumerate(array.batch_sizes.tolist()):
            if array.ran[row, columns].all():  # of two studies with the same epochs the first
                by_m.setdefault(m, {}).setdefault(epochs, _cut(kept, row, columns))
    by_m = {m: by_m[m] for m in sorted(by_m) if len(by_m[m]) >= LEAST}
    if len(by_m) < 2:
        return None
    names = sorted(runs["study"].unique())
    return Family(
        dataset=str(runs["dataset"].iloc[0]),
        name=_common_start(names).rstrip("-_.") or names[0],
        studies=tuple(names),
        epochs={m: np.array(sorted(own), dtype=float) for m, own in by_m.items()},
        accuracies=_stacked(by_m, lambda it: it.scored[0]),
        usable=_stacked(by_m, lambda it: it.usable[0]),
        base_lrs=np.array(sorted(rates)),
        seeds=np.array(sorted(seeds), dtype=np.int64),
        examples=int(runs["n_train"].iloc[0]),
        chance=arrays[0][1].chance,
    )


def _common_start(names: Sequence[str]) -> str:
    letters = itertools.takewhile(lambda it: len(set(it)) == 1, zip(*names, strict=False))
    return "".join(letter for letter, *_ in letters)


def _cut(array: SeedArray, row: int, columns: np.ndarray[Any, np.dtype[np.bool_]]) -> SeedArray:
    return SeedArray(
        array.name,
        array.batch_sizes[[row]],
        array.columns[columns],
        array.seeds,
        array.values[[row]][:, columns],
        array.chance,
    )


def _stacked(
    by_m: Mapping[int, Mapping[int, SeedArray]], of: Callable[[SeedArray], Any]
) -> dict[int, Floats]:
    return {m: np.stack([of(own[epochs]) for epochs in sorted(own)]) for m, own in by_m.items()}


def compare_budgets(family: Family, rates: Mapping[int, float]) -> pd.DataFrame:
    """What each m reaches under each budget, and which may be the best.

    A budget is compared at each amount that runs of the smallest m had, among the batch sizes whose
    runs reach from below it to above it; where fewer than half of them do, it is left out. Between
    two numbers of epochs the accuracy of a cell's seed is linear in log₂ of the amount.

    Args:
        family: The studies.
        rates: Examples a second at each m, for equal time; empty if not known.

    Returns:
        A row per budget, amount and batch size: ``epochs`` that the amount is at that m,
        ``accuracy``, the mean over seeds at the learning rate that is best at the other seeds, its
        95 % interval ``low`` … ``high``; ``base_lr``, the best over all seeds, and whether it is
        ``on_edge`` of the grid; ``standing``: "worse" than some other, "unusable" if a seed
        diverged at each learning rate, otherwise "open", as it may be the best, and "best" where
        of these the accuracy is highest; "" with fewer than `LEAST_SEEDS` seeds.
    """
    rows: list[dict[str, Any]] = []
    for budget in BUDGETS:
        amounts = family.amounts(budget, rates)
        if len(amounts) < 2:
            continue
        for amount in amounts[min(amounts)].tolist():
            inside = [m for m, own in amounts.items() if _reaches(own, amount)]
            if len(inside) >= max(2, len(family.epochs) / 2):
                shared = {"budget": budget, "amount": amount}
                rows += [shared | row for row in _at(family, amount, inside, amounts)]
    table = pd.DataFrame(rows).assign(dataset=family.dataset, family=family.name) if rows else None
    return pd.DataFrame(table, columns=list(COLUMNS))


def _reaches(own: Floats, amount: float) -> bool:
    """Whether an amount is among a batch size's, but for rounding at either end."""
    return bool(own[0] * (1 - _ROUNDING) <= amount <= own[-1] * (1 + _ROUNDING))


def _at(
    family: Family, amount: float, batch_sizes: list[int], amounts: Mapping[int, Floats]
) -> list[dict[str, Any]]:
    """The rows of one budget and amount."""
    values, epochs = [], []
    for m in batch_sizes:
        known = amounts[m]
        here = float(np.clip(amount, known[0], known[-1]))
        nearest = int(np.abs(known - here).argmin())
        if abs(known[nearest] - here) <= _ROUNDING * here:
            above = below = nearest
            share = 0.0
        else:
            above = int(np.searchsorted(known, here))
            below = above - 1
            share = np.log2(here / known[below]) / np.log2(known[above] / known[below])
        own = family.accuracies[m]
        cells = (1 - share) * own[below] + share * own[above]
        # A cell is usable where it was under both budgets.
        usable = family.usable[m][below] & family.usable[m][above]
        values.append(np.where(usable[:, np.newaxis], cells, -np.inf))
        # Amounts are proportional to epochs, but for the rounding of updates.
        epochs.append(float(np.interp(here, known, family.epochs[m])))
    array = SeedArray(
        family.name,
        np.array(batch_sizes, dtype=np.int64),
        family.base_lrs,
        family.seeds,
        np.stack(values),
        family.chance,
    )
    rivals = compared(array) if array.n >= LEAST_SEEDS else {}
    edges = array.at_the_edge()
    rows = [
        {"batch_size": m, "epochs": epochs[index], "n_seeds": array.n}
        | {"on_edge": bool(edges[index]), "standing": _standing(rivals, index)}
        | _best(array, index)
        for index, m in enumerate(batch_sizes)
    ]
    leading = [row for row in rows if row["standing"] == "open"]
    if leading:
        max(leading, key=lambda row: row["accuracy"])["standing"] = "best"
    return rows


def _standing(rivals: Mapping[int, Rivalry], index: int) -> str:
    if not rivals:
        return ""
    if (rival := rivals.get(index)) is None:
        return "unusable"
    return "worse" if rival.at_least > 0 else "open"


def _best(array: SeedArray, index: int) -> dict[str, float]:
    """The best learning rate at one m and its accuracy, with a 95 % interval over seeds."""
    own, usable = array.scored[index], array.usable[index]
    if not usable.any():
        return dict.fromkeys(("base_lr", "accuracy", "low", "high"), np.nan)
    reached, n = cross_fitted(own[usable]), array.n
    half = np.nan
    if n > 1:
        error = reached.std(ddof=1) * np.sqrt(dependence(n, int(usable.sum())) / n)
        half = float(stdtrit(n - 1, 0.975) * error)
    accuracy = float(reached.mean())
    best = array.columns[usable][own[usable].mean(axis=-1).argmax()]
    bounds = {"low": accuracy - half, "high": accuracy + half}
    return {"base_lr": float(best), "accuracy": accuracy} | bounds


def rates_of_columns(family: Family, timings: pd.DataFrame) -> dict[int, float]:
    """Examples that a column trains in a second at each m: the median over a family's studies.

    Args:
        family: The studies.
        timings: A row per column with ``images_per_second`` and ``environment``, see `Evidence`.

    Returns:
        Nothing if several kinds of machine trained them: then no times can be compared.
    """
    if timings.empty:
        return {}
    here = timings["study"].isin(family.studies) & timings["dataset"].eq(family.dataset)
    own = timings[here]
    kinds = {
        tuple(str(json.loads(text).get(key)) for key in ("cpu", "cores", "gpu", "device"))
        for text in own["environment"]
    }
    if len(kinds) != 1:
        return {}
    known = own.dropna(subset=["images_per_second"])
    return {
        int(m): float(known.loc[known["batch_size"] == m, "images_per_second"].median())
        for m in known["batch_size"].unique()
    }
