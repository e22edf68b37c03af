"""Which batch size is best for equal epochs, for equal updates, and for equal time.

The literature disagrees on small batches partly because budgets differ: with equal epochs a small
m makes more updates, with equal updates a large m sees more examples, and with equal time the
machine decides. Studies that differ in their epochs alone, a *family*, tell what each m reaches
under any of the three: a run of E epochs at m makes E·N/m updates and takes E·N/r seconds, where N
is the number of training examples and r how many of them the machine trains in a second at that m.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.special import stdtrit

from smallbatch.analysis.answer import LEAST_SEEDS
from smallbatch.analysis.answer import compared as rivalries
from smallbatch.analysis.families import EQUAL, Equal
from smallbatch.analysis.inference import cross_fitted, dependence
from smallbatch.analysis.seeds import SeedArray

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smallbatch.analysis.answer import Rivalry
    from smallbatch.analysis.families import Family
    from smallbatch.analysis.seeds import Floats, Masks

COLUMNS = ("dataset", "family", "studies", "budget", "amount", "batch_size", "epochs", "base_lr",
           "accuracy", "low", "high", "standing", "on_edge", "n_seeds")  # fmt: skip
"""Of the table that `compare_budgets` makes."""

_ROUNDING: dict[Equal, float] = {"epochs": 1e-9, "updates": 1e-9, "seconds": 0.02}
"""Amounts that differ by this share are the same: speeds are not known better."""


def compare_budgets(family: Family, speeds: Mapping[int, float]) -> pd.DataFrame:
    """What each m reaches under each budget, and which may be the best.

    A budget is compared at each amount that runs of the smallest m had, among the batch sizes whose
    runs reach from below it to above it; where fewer than half of them do, it is left out.

    Args:
        family: The studies.
        speeds: Examples a second at each m, for equal time; empty if not known.

    Returns:
        A row per budget, amount and batch size: ``epochs`` that the amount is at that m,
        ``accuracy``, the mean over seeds at the learning rate that is best at the other seeds, its
        95 % interval ``low`` … ``high``; ``base_lr``, the best over all seeds, and whether it is
        ``on_edge`` of those that all studies tried; ``standing``: "worse" than some other,
        "unusable" if a seed diverged at each learning rate, otherwise "open", as it may be the
        best, and "best" where of these the accuracy is highest; "" with fewer than `LEAST_SEEDS`
        seeds, or where no accuracy is beyond chance.
    """
    rows: list[dict[str, Any]] = []
    for equal in EQUAL:
        amounts = family.amounts(equal, speeds)
        if len(amounts) < 2:
            continue
        for amount in amounts[min(amounts)].tolist():
            inside = [m for m, own in amounts.items() if _reaches(own, amount, _ROUNDING[equal])]
            if len(inside) >= max(2, len(family.epochs) / 2):
                shared = {"budget": equal, "amount": amount}
                found = _at(family, amount, inside, amounts, _ROUNDING[equal])
                rows += [shared | row for row in found]
    named = {"dataset": family.dataset, "family": family.name, "studies": " ".join(family.studies)}
    table = pd.DataFrame(rows).assign(**named) if rows else None
    return pd.DataFrame(table, columns=list(COLUMNS))


def _reaches(own: Floats, amount: float, rounding: float) -> bool:
    """Whether an amount is among a batch size's, but for rounding at either end."""
    return bool(own[0] * (1 - rounding) <= amount <= own[-1] * (1 + rounding))


def _at(
    family: Family,
    amount: float,
    batch_sizes: list[int],
    amounts: Mapping[int, Floats],
    rounding: float,
) -> list[dict[str, Any]]:
    """The rows of one budget and amount."""
    found = [
        _between(amounts[m], family.accuracies[m], family.usable[m], amount, rounding)
        for m in batch_sizes
    ]
    array = SeedArray(
        family.name,
        np.array(batch_sizes, dtype=np.int64),
        family.base_lrs,
        family.seeds,
        np.stack([values for values, _ in found]),
        family.chance,
    )
    edges, standings = array.at_the_edge(), [""] * len(batch_sizes)
    if array.n >= LEAST_SEEDS and np.fmax.reduce(array.sample()) >= family.least:
        standings = _standings(array, [error for _, error in found])
    rows = [
        # Amounts are proportional to epochs, but for the rounding of updates.
        {"batch_size": m, "epochs": float(np.interp(amount, amounts[m], family.epochs[m]))}
        | {"n_seeds": array.n, "on_edge": bool(edges[index]) and len(array.columns) > 1}
        | {"standing": standings[index]}
        | _best(array, index)
        for index, m in enumerate(batch_sizes)
    ]
    leading = [row for row in rows if row["standing"] == "open"]
    if leading:
        max(leading, key=lambda row: row["accuracy"])["standing"] = "best"
    return rows


def _between(
    known: Floats, accuracies: Floats, usable: Masks, amount: float, rounding: float
) -> tuple[Floats, float]:
    """The accuracies of one m's cells at an amount, and how far off they may be.

    Between two amounts they follow a monotone cubic in log₂ of the amount (Fritsch & Carlson 1980),
    as learning slows down: a straight line would be too low. How far it is from the straight line,
    at the best cell, is taken for its error.

    Args:
        known: Amounts, ascending (K,).
        accuracies: At these (K, C, S).
        usable: Whether all seeds of a cell finished (K, C).
        amount: At or between known ones.
        rounding: By what share amounts may differ that are the same.

    Returns:
        Accuracies (C, S), -inf where a seed diverged at the amount below or above; the error.
    """
    nearest = int(np.abs(known - amount).argmin())
    if abs(known[nearest] - amount) <= rounding * amount:
        below = above = nearest
        values, error = accuracies[nearest], 0.0
    else:
        above = int(np.searchsorted(known, amount))
        below = above - 1
        logs, here = np.log2(known), np.log2(amount)
        values = PchipInterpolator(logs, accuracies)(here)
        share = (here - logs[below]) / (logs[above] - logs[below])
        straight = (1 - share) * accuracies[below] + share * accuracies[above]
        best = values.mean(axis=-1).argmax()
        error = float(abs(values[best].mean() - straight[best].mean()))
    both = usable[below] & usable[above]
    return np.where(both[:, np.newaxis], values, -np.inf), error


def _standings(array: SeedArray, errors: Sequence[float]) -> list[str]:
    """Whether each m is worse than another, beyond noise and what interpolation may be off."""
    rivals = rivalries(array)
    return [
        "unusable"
        if not array.usable[index].any()
        else "worse"
        if _is_worse(rivals.get(index), error, [*errors[:index], *errors[index + 1 :]])
        else "open"
        for index, error in enumerate(errors)
    ]


def _is_worse(rival: Rivalry | None, own: float, others: Sequence[float]) -> bool:
    return rival is not None and float(rival.at_least) > own + max(others, default=0.0)


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
    low, high = np.clip([accuracy - half, accuracy + half], 0.0, 1.0).tolist()
    return {"base_lr": float(best), "accuracy": accuracy, "low": low, "high": high}


_MACHINE = ("cpu", "cores", "gpu", "device", "engine", "workers", "hardware", "kernels")


def speeds_of_columns(family: Family, timings: pd.DataFrame) -> dict[int, float]:
    """Examples that a column trains in a second at each m: the median over a family's studies.

    Args:
        family: The studies.
        timings: A row per column with ``images_per_second`` and ``environment``, as
            `report.environment.read_timings` makes them.

    Returns:
        Nothing if times cannot be compared: several kinds of machine, engines or numbers of workers
        trained them, or several trained the runs of one column.
    """
    if timings.empty:
        return {}
    own = timings[timings["study"].isin(family.studies) & timings["dataset"].eq(family.dataset)]
    kinds = {
        tuple(str(json.loads(text).get(key)) for key in _MACHINE) for text in own["environment"]
    }
    if len(kinds) != 1 or any(part.startswith("several:") for part in kinds.pop()):
        return {}
    known = own.dropna(subset=["images_per_second"])
    return {
        int(m): float(known.loc[known["batch_size"] == m, "images_per_second"].median())
        for m in known["batch_size"].unique()
    }
