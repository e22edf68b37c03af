"""Base learning rates as text."""

from __future__ import annotations

import math
import re

_POWER = re.compile(r"^\s*2\s*(?:\^|\*\*)\s*([+-]?\d{1,4})\s*$")


def parse_base_lr(value: object) -> float:
    """Read a base learning rate η̃: a number, its text, or a power of two such as ``2^-6``.

    Raises:
        ValueError: It is not a number, not finite, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number above 0 or a power of two such as 2^-6")
    try:
        power = _POWER.match(value) if isinstance(value, str) else None
        number = 2.0 ** int(power.group(1)) if power else float(value)
    except (ValueError, OverflowError):
        raise ValueError("expected a number above 0 or a power of two such as 2^-6") from None
    if not math.isfinite(number) or number <= 0:
        raise ValueError("expected a number above 0 or a power of two such as 2^-6")
    return number


def format_base_lr(value: float) -> str:
    """Write a learning rate as the paper does, ``2^-6``; plainly if it is no power of two."""
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{value:g}"
