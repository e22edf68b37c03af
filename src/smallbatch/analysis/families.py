"""Studies that differ in their epochs alone: families, which budgets are compared on."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from smallbatch.analysis.answer import LEAST_SEEDS
from smallbatch.analysis.frames import on_bn_axis, settings_of
from smallbatch.analysis.mixed import ORIGIN, as_written
from smallbatch.analysis.sampling import least_beyond_chance
from smallbatch.analysis.seeds import SeedArray, seed_array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from smallbatch.analysis.seeds import Floats, Masks

Equal = Literal["epochs", "updates", "seconds"]

EQUAL: tuple[Equal, ...] = ("epochs", "updates", "seconds")
"""What is the same at every m."""

LEAST = 3
"""Of so many different numbers of epochs at least is a family; between them accuracies are
interpolated."""

_SEPARATORS = ("-", "_", ".")
# Settings in which studies of a family may differ: how long they are, what they are called, which
# grid they have.
_FREE = {"epochs", "budget", "figure", "base_lrs", "base_lr", "base_lr_from", "lrs", "seeds"}


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Family:
    """Studies that differ in their epochs alone, on the seeds and η̃ that all their cells have.

    Attributes:
        dataset: The data set's name.
        name: What the studies' names begin with; no other family of the data set has it.
        studies: Their names.
        epochs: At each m, the epochs of the studies that were run there, ascending: K or more.
        accuracies: At each m, of these studies' cells (K, C, S); chance where a seed diverged.
        usable: At each m, whether all seeds finished (K, C).
        base_lrs: η̃, under AdamW η, ascending (C,).
        seeds: The seeds (S,).
        examples: The number of training examples.
        chance: The accuracy of guessing.
        least: The lowest accuracy of a best cell that is beyond chance.
    """

    dataset: str
    name: str
    studies: tuple[str, ...]
    epochs: dict[int, Floats]
    accuracies: dict[int, Floats]
    usable: dict[int, Masks]
    base_lrs: Floats
    seeds: np.ndarray[Any, np.dtype[np.int64]]
    examples: int
    chance: float
    least: float

    def amounts(self, equal: Equal, speeds: Mapping[int, float]) -> dict[int, Floats]:
        """What runs of these epochs cost at each m, (K,): epochs, updates, or seconds.

        Args:
            equal: What is counted.
            speeds: Examples a second at each m; of seconds, an m without one is left out.
        """
        found: dict[int, Floats] = {}
        for m, epochs in self.epochs.items():
            if equal == "epochs":
                found[m] = epochs
            elif equal == "updates":
                found[m] = np.floor(epochs * self.examples / m)
            elif speeds.get(m, 0.0) > 0:
                found[m] = epochs * self.examples / speeds[m]
        return found


def shared_settings(runs: pd.DataFrame) -> list[str]:
    """The columns in which studies agree that are one experiment of several lengths or budgets."""
    return ["dataset", *ORIGIN, *(key for key in settings_of(runs) if key not in _FREE)]


def families(runs: pd.DataFrame) -> list[Family]:
    """The families among studies with η̃ (or η) as an axis.

    A study that takes its η̃ from another has none of its own to choose from, and is left out.

    Args:
        runs: As `load_results` makes them.
    """
    known = runs["n_train"].notna() & runs["base_lr_from"].isna() & ~on_bn_axis(runs)
    # With a BN batch of "up to N" the norm of a run depends on m; the study is one all the same.
    wanted = as_written(runs[known]).assign(epochs=runs.loc[known, "epochs"].to_numpy())
    groups = (group for _, group in wanted.groupby(shared_settings(wanted), dropna=False))
    found = [family for group in groups if (family := _family(group))]
    names = [(family.dataset, family.name) for family in found]
    return [
        family if names.count(key) == 1 else _renamed(family, found)
        for family, key in zip(found, names, strict=True)
    ]


def _renamed(family: Family, others: Sequence[Family]) -> Family:
    """The family named after its first study, numbered if another one begins with that as well."""
    alike = [it for it in others if it.dataset == family.dataset and it.name == family.name]
    firsts = [it.studies[0] for it in alike]
    number = f" ({alike.index(family) + 1})" if firsts.count(family.studies[0]) > 1 else ""
    return replace(family, name=f"{family.studies[0]} and others{number}")


def _family(runs: pd.DataFrame) -> Family | None:
    """The family of studies that agree in all but their epochs; None if there are too few.

    A study with hardly any seeds, or a grid of its own, would leave little to compare. It is left
    out if the others are enough.
    """
    groups = runs.groupby(["study", "epochs"])
    arrays = [(int(own["epochs"].iloc[0]), seed_array(own)) for _, own in groups]
    # Of two studies of equal length that with more runs is taken.
    arrays.sort(key=lambda it: (it[0], -_size(it), it[1].name))
    second_choice = None
    while len({epochs for epochs, _ in arrays}) >= LEAST:
        by_m = _by_m(arrays)
        used = {id(array): array for own in by_m.values() for array in own.values()}.values()
        seeds = set.intersection(*(set(it.seeds.tolist()) for it in used)) if used else set()
        rates = set.intersection(*(set(it.columns.tolist()) for it in used)) if used else set()
        found = _of_arrays(runs, by_m, sorted(seeds), sorted(rates)) if seeds and rates else None
        if found and len(seeds) >= min(LEAST_SEEDS, max(it.n for it in used)):
            return found
        second_choice = second_choice or found
        smallest = min(arrays, key=_size)
        arrays = [it for it in arrays if it is not smallest]
    return second_choice


def _size(study: tuple[int, SeedArray]) -> int:
    return int(study[1].ran.sum()) * study[1].n


def _by_m(arrays: Sequence[tuple[int, SeedArray]]) -> dict[int, dict[int, SeedArray]]:
    """The array of each m and number of epochs, for the m that have enough of them."""
    found: dict[int, dict[int, SeedArray]] = {}
    for epochs, array in arrays:
        for m, ran in zip(array.batch_sizes.tolist(), array.ran, strict=True):
            if ran.any():
                found.setdefault(m, {}).setdefault(epochs, array)
    return {m: found[m] for m in sorted(found) if len(found[m]) >= LEAST}


def _of_arrays(
    runs: pd.DataFrame,
    by_m: Mapping[int, Mapping[int, SeedArray]],
    seeds: list[int],
    rates: list[float],
) -> Family | None:
    epochs: dict[int, Floats] = {}
    accuracies: dict[int, Floats] = {}
    usable: dict[int, Masks] = {}
    names: set[str] = set()
    for m, own in by_m.items():
        columns = {e: np.isin(array.columns, rates) for e, array in own.items()}
        rows = {e: array.batch_sizes.tolist().index(m) for e, array in own.items()}
        kept = [e for e in sorted(own) if own[e].ran[rows[e], columns[e]].all()]
        if len(kept) < LEAST:
            continue
        cut = {e: own[e].of_seeds(seeds) for e in kept}
        epochs[m] = np.array(kept, dtype=float)
        accuracies[m] = np.stack([cut[e].scored[rows[e]][columns[e]] for e in kept])
        usable[m] = np.stack([cut[e].usable[rows[e]][columns[e]] for e in kept])
        names |= {own[e].name for e in kept}
    if len(epochs) < 2:
        return None
    studies = sorted(names, key=lambda it: (_length(it, by_m), it))
    return Family(
        dataset=str(runs["dataset"].iloc[0]),
        name=_common_start(studies),
        studies=tuple(studies),
        epochs=epochs,
        accuracies=accuracies,
        usable=usable,
        base_lrs=np.array(rates),
        seeds=np.array(seeds, dtype=np.int64),
        examples=int(runs["n_train"].iloc[0]),
        chance=1.0 / float(runs["classes"].iloc[0]),
        least=least_beyond_chance(runs) or 0.0,
    )


def _length(study: str, by_m: Mapping[int, Mapping[int, SeedArray]]) -> int:
    return min(e for own in by_m.values() for e, array in own.items() if array.name == study)


def _common_start(names: Sequence[str]) -> str:
    """What names have in common at their beginning, whole words of it."""
    letters = itertools.takewhile(lambda it: len(set(it)) == 1, zip(*names, strict=False))
    start = "".join(letter for letter, *_ in letters)
    if start not in names and not start.endswith(_SEPARATORS):  # it ends within a word
        ends = max(start.rfind(each) for each in _SEPARATORS)
        start = start[: ends + 1] or start
    return start.rstrip("".join(_SEPARATORS)) or names[0]
