"""The answer of `smallbatch advise` on one screen of a terminal."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from smallbatch.errors import shown
from smallbatch.report.advice_words import answer, headline
from smallbatch.report.labels import duration
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from smallbatch.analysis.advice import Advice

COLUMNS, LINES = 80, 23
"""Of the text; the last of a terminal's 24 lines is its prompt's."""


def advice_text(advice: Advice, paths: Sequence[Path | str] = ()) -> str:
    """The answer in plain words: at most 23 lines of at most 80 columns, without a final newline.

    Code and paths are never cut: where there is no room, code is left to the page, and a path that
    is longer than a line takes several of a terminal. Warnings have the lines that are left; those
    that are missing are counted.

    Args:
        advice: What was found.
        paths: Where the page and its data are.
    """
    end = [shown(str(path)) for path in paths]
    title = (
        f"{advice.dataset} with {advice.model}, {advice.optimizer}: "
        f"answered after {duration(advice.seconds)} of {advice.budget}"
    )
    top = [_cut(shown(title)), *wrapped(headline(advice))]
    for sentence in answer(advice):
        top += wrapped(sentence, "  ")
    room = LINES - len(top) - sum(-(-max(1, width(line)) // COLUMNS) for line in end)
    code = _code(advice, room)
    return "\n".join([*top, *code, *_warnings(advice.warnings, max(1, room - len(code))), *end])


def _code(advice: Advice, room: int) -> list[str]:
    """The code between empty lines, if it has room beside a line of warnings.

    Args:
        advice: What was found.
        room: How many lines there are for code and warnings.
    """
    found = advice.recommended
    if found is None or not found.beyond_chance:
        return [""]
    lines = [shown(line) for line in found.code.splitlines()]
    least = min(1, len(advice.warnings))
    if len(lines) + 2 + least <= room and all(width(line) <= COLUMNS for line in lines):
        return ["", *lines, ""]
    return ["", "The code to paste is on the page.", ""]


def width(text: str) -> int:
    """The columns of a terminal that a text takes: none for the tilde of η̃, two for 字."""
    return sum(
        0 if unicodedata.combining(it) else 2 if unicodedata.east_asian_width(it) in "WF" else 1
        for it in text
    )


def wrapped(text: str, indent: str = "") -> list[str]:
    """A text in lines of at most 80 columns, each after the first indented twice as far.

    An = stays with what is beside it, and a word that is longer than a line is cut.
    """
    words = shown(text).replace(" = ", "\0=\0").replace(" %", "\0%").split(" ")
    lines, line = list[str](), indent
    for word in words:
        if line.strip() and width(f"{line} {word}") > COLUMNS:
            lines.append(line)
            line = indent + "  "
        line += f" {word}" if line.strip() else word
    return [_cut(it.replace("\0", " ")) for it in [*lines, line]]


def _warnings(warnings: Sequence[str], room: int) -> list[str]:
    """Warnings in at most so many lines: whole if they fit, else one line each, else a count."""
    whole = [line for it in warnings for line in wrapped(f"! {it}")]
    if len(whole) <= room:
        return whole
    if len(warnings) <= room:
        return [_cut(f"! {shown(it)}") for it in warnings]
    kept = [_cut(f"! {shown(it)}") for it in warnings[: room - 1]]
    others = len(warnings) - len(kept)
    return [*kept, f"! {count(others, 'warning')}{' more' if kept else ''}: see the page"]


def _cut(line: str) -> str:
    if width(line) <= COLUMNS:
        return line
    while width(line) > COLUMNS - 1:
        line = line[:-1]
    return f"{line.rstrip()}…"
