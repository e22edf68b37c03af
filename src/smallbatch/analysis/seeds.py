"""One study's accuracies as an array with an axis for seeds, and the bootstrap over seeds.

Cells of one seed share initial weights and stream (docs/decisions.md). So whole seeds are
resampled, the same ones in every cell and every study of a comparison, and differences are paired
by seed. Whatever is chosen from the data, such as the best η̃, is chosen anew in each resample.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from smallbatch.analysis.cells import MAIN_FRACTION, ranked
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd

Floats: TypeAlias = npt.NDArray[np.float64]
Picks: TypeAlias = npt.NDArray[np.intp]

# With at most so many seeds all nⁿ resamples with replacement are used; all are equally likely.
ENUMERATED_SEEDS = 4
RANDOM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class SeedArray:
    """Reported accuracies of one study.

    Attributes:
        name: The name of the study.
        batch_sizes: m, ascending (B,).
        columns: η̃ ascending, or BN batch sizes ascending (C,).
        seeds: The seeds that every cell has (S,).
        values: Accuracies (B, C, S); -inf for a diverged run, NaN if not run.
        chance: The accuracy of guessing.
    """

    name: str
    batch_sizes: npt.NDArray[np.int64]
    columns: Floats
    seeds: npt.NDArray[np.int64]
    values: Floats
    chance: float

    def of_seeds(self, seeds: Collection[int]) -> SeedArray:
        """Keep some of the seeds."""
        kept = np.isin(self.seeds, list(seeds))
        return SeedArray(
            self.name,
            self.batch_sizes,
            self.columns,
            self.seeds[kept],
            self.values[..., kept],
            self.chance,
        )

    def medians(self, picks: Picks) -> Floats:
        """Median over the picked seeds of every cell: (B, C, R) for picks (R, n)."""
        return np.median(self.values[:, :, picks], axis=-1)

    def best(self, picks: Picks) -> Floats:
        """Accuracy at the best η̃ of each m, (B, R); chance if no η̃ finishes."""
        return np.fmax(_fmax(self.medians(picks), 1), self.chance)

    def sample(self) -> Floats:
        """Accuracy at the best η̃ of each m over all seeds, (B,)."""
        return self.best(all_once(len(self.seeds)))[:, 0]

    def worst(self, among: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """The worst of some m, as a mask (B,); all of them if several are equal."""
        best = self.sample()
        return among & (best == best[among].min())

    def leader(self, among: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
        """The best m (of ``among``, if given), as a mask (B,); of equals the smallest."""
        best = self.sample() if among is None else np.where(among, self.sample(), -1.0)
        return np.arange(len(best)) == best.argmax()

    def at_the_edge(self) -> npt.NDArray[np.bool_]:
        """Whether at each m the best η̃ is the lowest or highest tried, or none finished, (B,)."""
        medians = self.medians(all_once(len(self.seeds)))[..., 0]
        found = np.zeros(len(medians), dtype=np.bool_)
        for row, values in enumerate(medians):
            tried = np.flatnonzero(~np.isnan(values))
            finite = tried[np.isfinite(values[tried])]
            best = finite[values[finite].argmax()] if len(finite) else tried[0]
            found[row] = best in (tried[0], tried[-1])
        return found

    def reach(self, medians: Floats) -> Floats:
        """How far accuracies (B, …, R) get from chance (0) to the study's best cell (1)."""
        top = _fmax(medians.reshape(-1, medians.shape[-1]), 0)
        floored = np.fmax(medians, self.chance) - self.chance
        return floored / np.maximum(top - self.chance, 1e-9)

    def reliable(self, picks: Picks, fraction: float = MAIN_FRACTION) -> npt.NDArray[np.bool_]:
        """Whether each cell converges reliably, (B, C, R); see `analysis.cells`."""
        best = _fmax(self.medians(picks).reshape(-1, len(picks)), 0)
        threshold = self.chance + fraction * (best - self.chance)
        lowest = self.values[:, :, picks].min(axis=-1)
        return (lowest >= threshold - 1e-9) & (best > self.chance)


def seed_array(runs: pd.DataFrame, column: str = "base_lr") -> SeedArray:
    """The seed array of one study.

    Args:
        runs: The runs of the study, as `load_results` makes them.
        column: The second axis, ``base_lr`` or ``bn_batch_size``.

    Raises:
        UserError: Two runs have the same place in the grid.
    """
    keys = ["batch_size", column]
    if (twice := runs.duplicated([*keys, "seed"])).any():
        first = runs[twice].iloc[0]
        raise UserError(
            f"{first['dataset']}/{first['study']}: holds two runs at m={first['batch_size']}, "
            f"{column} {first[column]:g} and seed {first['seed']}; train its columns again"
        )
    marked = runs.assign(_value=ranked(runs, "reported_accuracy"))
    table = marked.pivot_table(
        index=keys, columns="seed", values="_value", aggfunc="first", dropna=False
    )
    # pivot_table has a row for every combination; a cell that was not run has no values.
    ran = table.notna().any(axis=1)
    whole = table.columns[table[ran].notna().all(axis=0)]
    batch_sizes = np.unique(runs["batch_size"].to_numpy(dtype=np.int64))
    columns = np.unique(runs[column].to_numpy(dtype=float))
    values = np.full((len(batch_sizes), len(columns), len(whole)), np.nan)
    places = zip(
        np.searchsorted(batch_sizes, marked["batch_size"]),
        np.searchsorted(columns, marked[column].astype(float)),
        marked["seed"],
        marked["_value"],
        strict=True,
    )
    order = {int(seed): index for index, seed in enumerate(whole)}
    for row, cell, seed, value in places:
        if int(seed) in order:
            values[row, cell, order[int(seed)]] = value
    return SeedArray(
        name=str(runs["study"].iloc[0]),
        batch_sizes=batch_sizes,
        columns=columns,
        seeds=np.asarray(whole, dtype=np.int64),
        values=values,
        chance=1.0 / float(runs["classes"].iloc[0]),
    )


def all_once(n: int) -> Picks:
    """The pick that takes every seed once, (1, n): the sample itself."""
    return np.arange(n)[np.newaxis]


def resamples(n: int) -> Picks:
    """Picks of n seeds with replacement, (R, n): all of them, or many at random."""
    if n <= ENUMERATED_SEEDS:
        return np.array(list(itertools.product(range(n), repeat=n)), dtype=np.intp)
    generator = np.random.Generator(np.random.PCG64(0))
    return generator.integers(0, n, size=(RANDOM_RESAMPLES, n))


def interval(effects: Floats) -> tuple[float, float]:
    """The percentile confidence interval of resampled effects."""
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(effects, tail, method="lower")
    high = np.quantile(effects, 1 - tail, method="higher")
    return float(low), float(high)


def _fmax(values: Floats, axis: int) -> Floats:
    """Maximum that ignores NaN, which stands for cells that were not run."""
    return np.fmax.reduce(values, axis=axis)
