"""Base learning rates as text."""

from __future__ import annotations

import math
import re

# Powers of two, as float32 holds them: what is computed with must neither vanish nor overflow.
SMALLEST, LARGEST = 2.0**-126, 2.0**127

_POWER = re.compile(r"^\s*2\s*(?:\^|\*\*)\s*([+-]?\d{1,4})\s*$")
_EXPECTED = "expected a number above 0 or a power of two such as 2^-6"
_RANGE = "expected 2^-126 to 2^127, which single precision can hold"


def parse_base_lr(value: object) -> float:
    """Read a base learning rate η̃: a number, its text, or a power of two such as ``2^-6``.

    Raises:
        ValueError: It is not a number, or not one from 2^-126 to 2^127.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(_EXPECTED)
    try:
        power = _POWER.match(value) if isinstance(value, str) else None
        number = 2.0 ** int(power.group(1)) if power else float(value)
    except OverflowError:
        raise ValueError(_RANGE) from None
    except ValueError:
        raise ValueError(_EXPECTED) from None
    if math.isnan(number) or number <= 0:
        raise ValueError(_RANGE if isinstance(value, str) and power else _EXPECTED)
    if not SMALLEST <= number <= LARGEST:
        raise ValueError(_RANGE)
    return number


def refuse_overflow(base_lr: float, batch_size: int) -> None:
    """Check that η = m·η̃ is a number of single precision, too.

    Raises:
        ValueError: It is too large; the message names both.
    """
    if base_lr * batch_size > LARGEST:
        raise ValueError(
            f"base_lr: found {format_base_lr(base_lr)} at batch size {batch_size}, allowed: a "
            f"learning rate η = m·η̃ of at most 2^127"
        )


def format_base_lr(value: float) -> str:
    """Write a learning rate as the paper does, ``2^-6``; plainly if it is no power of two."""
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{value:g}"
