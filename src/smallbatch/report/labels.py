"""How numbers are written on the page and in the figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from smallbatch.analysis.frames import ADAMW, on_lr_axis
from smallbatch.config.base_lr import format_base_lr

if TYPE_CHECKING:
    import pandas as pd

SUPERSCRIPTS = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
_RAISED = str.maketrans("-0123456789", SUPERSCRIPTS)
DASH = "–"


def power_of_two(value: float, digits: int = 3) -> str:
    """Write a learning rate as 2ᵏ if it is a power of two, else in digits; NaN as a dash."""
    if math.isnan(value):
        return DASH
    base, power, exponent = format_base_lr(value).partition("^")
    return base + exponent.translate(_RAISED) if power else f"{value:.{digits}g}"


def rate_of(frame: pd.DataFrame) -> str:
    """What the learning rates of one study's grid are: η̃, under AdamW η."""
    return "η" if on_lr_axis(frame) else "η̃"


def rates_of(frame: pd.DataFrame) -> str:
    """What the learning rates of several studies' grids are in one word: η̃, η, or both."""
    kinds = frame["optimizer"].eq(ADAMW) if "optimizer" in frame else None
    if kinds is None or not kinds.any():
        return "η̃"
    return "η" if kinds.all() else "learning rate"


def rate_of_cell(cell: dict[Any, Any]) -> str:
    """What the learning rates of a cell's, or a range's, study are: η̃, under AdamW η."""
    return "η" if cell.get("optimizer") == ADAMW else "η̃"


def both_rates(row: dict[Any, Any]) -> str:
    """A cell's learning rate, for a sentence: "η̃ = 2⁻⁸ (η = 2⁻⁶)", under AdamW "η = 2⁻⁸"."""
    lr = f"η = {power_of_two(row['lr'])}"
    if rate_of_cell(row) == "η":
        return lr
    return f"η̃ = {power_of_two(row['base_lr'])} ({lr})"


def percent(fraction: float, digits: int = 1) -> str:
    """Write a fraction of 1 in percent; NaN as a dash."""
    return DASH if math.isnan(fraction) else f"{100 * fraction:.{digits}f} %"


def points(fraction: float, digits: int = 1) -> str:
    """Write a difference of two fractions in percentage points, with its sign; NaN as a dash."""
    if math.isnan(fraction):
        return DASH
    return f"{100 * fraction:+.{digits}f}".replace("-", "−")


def points_up(difference: float) -> str:
    """A bound in points, rounded up, so that it stays true."""
    return f"{max(0.1, math.ceil(1000 * difference - 1e-9) / 10):.1f}"


def spread(low: float, high: float) -> str:
    """Write the range of an accuracy over seeds; a low end that diverged is named."""
    if math.isnan(high):
        return "all diverged"
    bottom = "diverged" if math.isnan(low) else f"{100 * low:.1f}"
    return f"{bottom} … {100 * high:.1f} %"


def listed(values: list[str]) -> str:
    """Join for prose: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(values[:-1]), values[-1]])) if values else ""


def duration(seconds: float) -> str:
    """Write a duration in the unit that suits it."""
    if math.isnan(seconds):
        return DASH
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
