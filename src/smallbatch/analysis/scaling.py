"""How the best learning rate of a study under AdamW changes with the batch size.

Rules of thumb say that η is to be constant, to grow with √m, or with m. None is assumed here: the
slope of log₂ of the best η against log₂ m is measured, and the rules are what it is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.frames import on_lr_axis

if TYPE_CHECKING:
    import pandas as pd

RULES = {"constant": 0.0, "square root": 0.5, "linear": 1.0}
"""Rules of thumb by name: the exponent k of η ∝ mᵏ."""

LEAST = 3
"""Fewest batch sizes for a slope."""


@dataclass(frozen=True)
class Scaling:
    """The slope of one study.

    Attributes:
        exponent: k of η ∝ mᵏ, by least squares over the batch sizes.
        low, high: Between which k lies if each best η is wrong by up to half a step of the grid.
        step: The widest step of the grid in octaves.
        batch_sizes: Those that were used, ascending: whose best η is not on the edge of the grid.
        reference_lr: The best η at the smallest of them.
    """

    exponent: float
    low: float
    high: float
    step: float
    batch_sizes: tuple[int, ...]
    reference_lr: float

    @property
    def nearest(self) -> str:
        """The rule whose exponent is nearest."""
        return min(RULES, key=lambda rule: abs(RULES[rule] - self.exponent))

    @property
    def open(self) -> tuple[str, ...]:
        """The rules that the grid's steps leave possible."""
        return tuple(rule for rule, k in RULES.items() if self.low <= k <= self.high)

    def by_rule(self, rule: str, batch_size: int) -> float:
        """η at m by a rule, through the best η of the smallest batch size."""
        return self.reference_lr * (batch_size / self.batch_sizes[0]) ** RULES[rule]


def scaling(best: pd.DataFrame, cells: pd.DataFrame) -> Scaling | None:
    """Measure how the best η of one study changes with m.

    Args:
        best: The study's rows of `best_cells`.
        cells: Its rows of `summarise_cells`.

    Returns:
        The slope; None for studies whose grid is of η̃, and with fewer than three batch sizes
        whose best η lies inside the grid.
    """
    if not on_lr_axis(best):
        return None
    inside = best[best["grid_edge"] == ""].sort_values("batch_size")
    if len(inside) < LEAST:
        return None
    x = np.log2(inside["batch_size"].to_numpy(dtype=float))
    y = np.log2(inside["lr"].to_numpy(dtype=float))
    x = x - x.mean()
    square = float((x**2).sum())
    exponent = float((x * y).sum() / square)
    step = float(np.diff(np.log2(np.unique(cells["lr"].to_numpy(dtype=float)))).max())
    # The slope is farthest off where all errors to one side of the middle have one sign.
    reach = step / 2 * float(np.abs(x).sum()) / square
    return Scaling(
        exponent, exponent - reach, exponent + reach, step,
        tuple(inside["batch_size"].tolist()), float(inside["lr"].iloc[0]),
    )  # fmt: skip
