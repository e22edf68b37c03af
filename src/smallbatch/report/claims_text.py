"""The verdicts on the paper's claims as text: a Markdown table, or tables for a terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from smallbatch.errors import shown
from smallbatch.markdown import table
from smallbatch.report.claims import HEADERS, NOT_RUN, rows
from smallbatch.report.labels import DASH
from smallbatch.text import count

if TYPE_CHECKING:
    from rich.table import Table

    from smallbatch.analysis.claims import Verdict
    from smallbatch.report.claims import ClaimsRecord

_COLOURS: dict[Verdict, str] = {
    "strictly supported": "bold green",
    "supported": "green",
    "contradicted": "red",
    "undecided": "yellow",
    "not run": "dim",
}

_INTERVAL = re.compile(r"(\S+) (\[.*\]) (.*)")  # an effect, its bounds, its unit


def markdown(record: ClaimsRecord, everything: bool = False) -> str:
    """The table of verdicts in Markdown, and a line on what was not run.

    Args:
        record: The content of a ``claims.json``.
        everything: Whether to show what was not run in the table, and leave out the line.
    """
    lines = [table(HEADERS, _shown_rows(record, everything))]
    if not everything and (line := not_run_line(record)):
        lines += ["", line]
    return "\n".join(lines)


def print_tables(record: ClaimsRecord, everything: bool = False) -> None:
    """Print the verdicts on a terminal, a table for each data set; see :func:`markdown`."""
    from rich.console import Console

    console = Console(highlight=False)
    by_data: dict[str, list[list[str]]] = {}
    # What was not run is of no data set; it comes last.
    for row in sorted(_shown_rows(record, everything), key=lambda row: row[2] == NOT_RUN):
        by_data.setdefault(row[5], []).append(row)
    for data, own in by_data.items():
        console.print(_table("not run" if data == DASH else shown(data), own))
    if not everything and (line := not_run_line(record)):
        console.print(line, markup=False)


def not_run_line(record: ClaimsRecord) -> str:
    """How many statements were not run, and of which figures; empty if all were."""
    missing = [row for row in rows(record) if row[2] == NOT_RUN]
    if not missing:
        return ""
    figures = ", ".join(dict.fromkeys(row[1] for row in missing))
    statements = count(len(missing), "statement")
    return f"not run: {statements} (Fig. {shown(figures)}; `smallbatch claims --all` shows them)"


def _shown_rows(record: ClaimsRecord, everything: bool) -> list[list[str]]:
    return [row for row in rows(record) if everything or row[2] != NOT_RUN]


def _table(title: str, own: list[list[str]]) -> Table:
    """Rows of one data set. Remarks stand below the statement, bounds below the effect."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                 expand=True)  # fmt: skip
    made.add_column(HEADERS[0], ratio=1)
    made.add_column(HEADERS[1], no_wrap=True)
    made.add_column(HEADERS[2], width=12)
    made.add_column(Text("effect\n[bounds]"), min_width=17, max_width=22)
    made.add_column(HEADERS[4], justify="right", no_wrap=True)
    for statement, figure, verdict, effect, n, _, remarks in own:
        first = Text(shown(statement))
        if remarks:
            first.append(f"\n{shown(remarks)}", style="dim")
        colour = _COLOURS[verdict]  # pyright: ignore[reportArgumentType] - checked when it was read
        made.add_row(
            first, Text(shown(figure)), Text(verdict, colour), Text(_in_lines(shown(effect))), n
        )
    return made


def _in_lines(effect: str) -> str:
    """An effect, and its bounds, or that there are none, in a line of their own."""
    if found := _INTERVAL.fullmatch(effect):
        return f"{found[1]} {found[3]}\n{found[2]}"
    return effect.replace(", ", "\n")
