"""Numbers in sentences."""

from __future__ import annotations


def count(number: int, thing: str, plural: str = "") -> str:
    """Write "1 run", "2 runs"."""
    return f"{number} {thing if number == 1 else plural or thing + 's'}"
