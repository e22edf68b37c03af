"""One study's accuracies as an array with an axis for seeds.

Cells of one seed share initial weights and stream (docs/decisions.md). So differences are paired by
seed, and only seeds that every cell has are compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from smallbatch.analysis import inference
from smallbatch.analysis.cells import MAIN_FRACTION, ranked
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection

    import pandas as pd

Floats: TypeAlias = npt.NDArray[np.float64]
Masks: TypeAlias = npt.NDArray[np.bool_]


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

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.seeds)

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

    @cached_property
    def usable(self) -> Masks:
        """Whether each cell was run and every seed of it finished, (B, C)."""
        found: Masks = np.all(np.isfinite(self.values), axis=-1)
        return found

    @cached_property
    def ran(self) -> Masks:
        """Whether each cell was run, (B, C)."""
        found: Masks = ~np.any(np.isnan(self.values), axis=-1)
        return found

    @cached_property
    def scored(self) -> Floats:
        """Accuracies (B, C, S), those of a cell with a diverged seed chance at every seed.

        Nobody can use such a cell. NaN if not run.
        """
        scored: Floats = np.where(self.usable[..., np.newaxis], self.values, self.chance)
        scored[~self.ran] = np.nan
        return scored

    def cells(self, among: Masks) -> Floats:
        """The accuracies (K, S) of all cells that were run at some m, given as a mask (B,)."""
        return self.scored[among][self.ran[among]]

    def cells_at(self, index: int) -> Floats:
        """The accuracies (K, S) of the cells that were run at one m."""
        return self.scored[index][self.ran[index]]

    def noise(self) -> inference.Noise:
        """The noise of one run, from the best usable cell of each m that learns.

        An m that stays at chance has hardly any noise, which says nothing of the others. It learns
        if its best cell gets half-way from chance to the best of all.
        """
        some = np.flatnonzero(self.usable.any(axis=1) & (self.sample() >= self.threshold()))
        rows = [self.values[index][self.usable[index]] for index in some]
        return inference.noise(rows) if rows else inference.noise_of_tables([])

    def sample(self) -> Floats:
        """The mean over seeds at the best η̃ of each m, (B,)."""
        means = self.scored.mean(axis=-1)
        return np.fmax.reduce(means, axis=1)

    def leader(self, among: Masks | None = None) -> Masks:
        """The best m (of ``among``, if given), as a mask (B,); of equals the smallest."""
        best = self.sample() if among is None else np.where(among, self.sample(), -1.0)
        return np.arange(len(best)) == best.argmax()

    def at_the_edge(self) -> Masks:
        """Whether at each m the best η̃ is the lowest or highest tried, or none is usable, (B,)."""
        means = self.scored.mean(axis=-1)
        found = np.zeros(len(means), dtype=np.bool_)
        for row, values in enumerate(means):
            tried = np.flatnonzero(self.ran[row])
            usable = np.flatnonzero(self.usable[row])
            best = usable[values[usable].argmax()] if len(usable) else None
            found[row] = best is None or best in (tried[0], tried[-1])
        return found

    def threshold(self, fraction: float = MAIN_FRACTION) -> float:
        """The accuracy a fraction of the way from chance to the best mean of any cell."""
        return self.chance + fraction * (float(np.fmax.reduce(self.sample())) - self.chance)

    def reliable(self, picks: npt.NDArray[np.intp]) -> Masks:
        """Whether each cell converges reliably on some seeds, (B, C, R) for picks (R, n).

        By the definition of `analysis.cells`: every seed at least half-way from chance to the
        highest median of any cell.
        """
        medians = np.median(self.values[:, :, picks], axis=-1)
        best = np.fmax.reduce(medians.reshape(-1, len(picks)), axis=0)
        threshold = self.chance + MAIN_FRACTION * (best - self.chance)
        lowest = self.values[:, :, picks].min(axis=-1)
        found: Masks = (lowest >= threshold - 1e-9) & (best > self.chance)
        return found


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
