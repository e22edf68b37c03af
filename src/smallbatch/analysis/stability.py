"""The range of base learning rates that converge reliably (arXiv 1804.07612, Fig. 16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from smallbatch.analysis.cells import FRACTIONS, STUDY_KEYS, is_reliable
from smallbatch.analysis.frames import on_lr_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

RANGE_COLUMNS = (
    "dataset",
    "study",
    "fraction",
    "batch_size",
    "threshold",
    "n_base_lrs",
    "n_reliable",
    "lower",
    "upper",
    "lower_lr",
    "upper_lr",
    "octaves",
    "lower_limit",
    "upper_limit",
    "holes",
    "optimizer",
)
# What is next to the end of a range.
EDGE = "grid edge"
DIVERGED = "diverged"
BELOW = "below threshold"


def stable_ranges(cells: pd.DataFrame, fractions: Sequence[float] = FRACTIONS) -> pd.DataFrame:
    """Find the lowest and highest η̃ that converge reliably, for every study, fraction and m.

    Args:
        cells: As `summarise_cells` makes them.
        fractions: The positions of the threshold τ between chance (0) and the study's best cell
            (1).

    Returns:
        One row per (dataset, study, fraction, batch_size), in that order. ``lower`` and ``upper``
        are η̃ (under AdamW η), ``lower_lr`` and ``upper_lr`` η, all NaN if none is reliable;
        ``octaves`` is log2(upper/lower); ``threshold`` is τ. ``lower_limit`` and ``upper_limit``
        describe the next cell outwards: "grid edge" (there is none, so the true end may lie further
        out), "diverged" (at least one seed) or "below threshold" (every seed finished, but one or
        more too low). ``holes`` lists the η̃ inside the range that are not reliable.
    """
    rows = [
        {"dataset": dataset, "study": study, "fraction": fraction, **_range(column, fraction)}
        for (dataset, study, _), column in cells.sort_values("base_lr").groupby(
            [*STUDY_KEYS, "batch_size"]
        )
        for fraction in fractions
    ]
    frame = pd.DataFrame(rows, columns=list(RANGE_COLUMNS))
    return frame.sort_values(["dataset", "study", "fraction", "batch_size"], ignore_index=True)


def _range(column: pd.DataFrame, fraction: float) -> dict[str, Any]:
    """Describe the reliable range of one batch size; ``column`` is sorted by η̃."""
    base_lrs = column["base_lr"].to_numpy(dtype=float)
    chance, best = float(column["chance"].iloc[0]), float(column["best_accuracy"].iloc[0])
    reliable = is_reliable(column["reach"], fraction).to_numpy(dtype=bool)
    found = np.flatnonzero(reliable)
    row: dict[str, Any] = {
        "batch_size": int(column["batch_size"].iloc[0]),
        "threshold": chance + fraction * (best - chance),
        "n_base_lrs": len(base_lrs),
        "n_reliable": len(found),
        "lower": np.nan,
        "upper": np.nan,
        "lower_lr": np.nan,
        "upper_lr": np.nan,
        "lower_limit": "",
        "upper_limit": "",
        "holes": (),
        "optimizer": column["optimizer"].iloc[0],
    }
    if len(found):
        first, last = int(found[0]), int(found[-1])
        inside = slice(first, last + 1)
        diverged = column["n_diverged"].to_numpy(dtype=int) > 0
        lrs = column["lr"].to_numpy(dtype=float)
        row["lower"], row["upper"] = base_lrs[first], base_lrs[last]
        row["lower_lr"], row["upper_lr"] = lrs[first], lrs[last]
        row["lower_limit"] = EDGE if first == 0 else _cause(diverged[first - 1])
        row["upper_limit"] = EDGE if last == len(base_lrs) - 1 else _cause(diverged[last + 1])
        row["holes"] = tuple(float(value) for value in base_lrs[inside][~reliable[inside]])
    row["octaves"] = np.log2(row["upper"] / row["lower"])
    return row


def _cause(diverged: bool) -> str:
    return DIVERGED if diverged else BELOW


@dataclass(frozen=True)
class LimitFit:
    """The fit η̃_max(m) = η̃₀ / (1 + m/m*): flat below m*, slope -1 (constant η) above it.

    Attributes:
        base_lr_0: η̃₀, the limit of η̃_max for small m.
        m_star: m*, the batch size at which the limit has halved.
        rms_octaves: The root mean square residual in log2 η̃.
        n_points: The number of fitted batch sizes (upper end not on the grid's edge).
        m_star_bound: "lower" or "upper" if m* is at the end of its search interval, so that it is
            only known to lie below, or above, the batch sizes; else "".
    """

    base_lr_0: float
    m_star: float
    rms_octaves: float
    n_points: int
    m_star_bound: str

    def __call__(self, batch_size: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The fitted η̃_max at each batch size."""
        return self.base_lr_0 / (1.0 + np.asarray(batch_size, dtype=float) / self.m_star)


def fit_upper_limit(ranges: pd.DataFrame) -> LimitFit | None:
    """Fit the upper ends of one study's ranges, at one fraction (docs/decisions.md, Numbers).

    The fit is by least squares in log2 η̃ over the batch sizes whose upper end lies inside the
    grid; an end on the edge is only a bound and is left out. m* is searched from 8 times below the
    smallest of those batch sizes to 8 times above the largest.

    Returns:
        The fit; None with fewer than three such batch sizes, and under AdamW, whose η knows no
        such law.
    """
    if on_lr_axis(ranges):
        return None
    inside = ranges[(ranges["n_reliable"] > 0) & (ranges["upper_limit"] != EDGE)]
    if len(inside) < 3:
        return None
    return fit_limit(
        inside["batch_size"].to_numpy(dtype=float), np.log2(inside["upper"].to_numpy(dtype=float))
    )


def fit_limit(batch_sizes: npt.NDArray[np.float64], log_upper: npt.NDArray[np.float64]) -> LimitFit:
    """Fit upper ends, given as log2 η̃, at ascending batch sizes; see `fit_upper_limit`."""
    low, high = np.log2(batch_sizes.min()) - 3.0, np.log2(batch_sizes.max()) + 3.0
    # For a given m* the best η̃₀ is a mean, so only m* is searched. The squared error may have two
    # minima, hence a scan, in steps of 1/512 octave, far finer than the grid.
    log_m_star: npt.NDArray[np.float64] = low + np.arange(int((high - low) * 512) + 1) / 512
    residual = log_upper + np.log2(1.0 + batch_sizes / 2.0 ** log_m_star[:, None])
    log_base = residual.mean(axis=1)
    rms = np.sqrt(((residual - log_base[:, None]) ** 2).mean(axis=1))
    best = int(rms.argmin())
    bound = {0: "lower", len(rms) - 1: "upper"}.get(best, "")
    return LimitFit(
        base_lr_0=float(2.0 ** log_base[best]),
        m_star=float(2.0 ** log_m_star[best]),
        rms_octaves=float(rms[best]),
        n_points=len(batch_sizes),
        m_star_bound=bound,
    )
