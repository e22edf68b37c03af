"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[object], rows: Iterable[Sequence[object]], right: int = 0) -> str:
    """A table, its last ``right`` columns aligned to the right; without a newline at the end."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, rule, *rows))
