"""Tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# What would end a cell or a row, or begin code, HTML, a character reference or a link's address;
# GitHub makes links of https:// and www. as well.
_SPECIAL = re.compile(r"[\\|`<]|&(?=#?\w+;)|(?<=\])\(|/(?=/)|(?<=www)\.", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], right: int = 0) -> str:
    """A table, its last ``right`` columns aligned to the right; without a newline at the end.

    Text in a cell stays in it: it is shown as it is, with a space for line breaks.
    """
    rule = "| " + " | ".join(["---"] * (len(head) - right) + ["---:"] * right) + " |"
    first, *others = (f"| {' | '.join(map(_cell, row))} |" for row in (head, *rows))
    return "\n".join([first, rule, *others])


def _cell(value: object) -> str:
    return _SPECIAL.sub(r"\\\g<0>", _CONTROL.sub(" ", str(value)))
