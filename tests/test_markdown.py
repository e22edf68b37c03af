"""Texts in a Markdown table are shown as they are, read by an independent parser."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from smallbatch import markdown

TEXTS = (
    "a | b",
    "a \\| b",
    "ends with \\",
    "`code | more`",
    "``",
    "<b>bold</b>",
    "<!-- not shown",
    "&lt; &#124; & x",
    "[link](https://example.org)",
    "![image](https://example.org/x.png)",
    "+5.12 [+3.1, +7.74] points",
    "<https://example.org>",
    "see https://example.org/a//b, HTTP://example.org or ftp://example.org",
    "www.example.org or WWW.example.org",
    "bare",
)


class Cells(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and data != "\n":
            self.rows[-1][-1] += data


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_in_its_cell_and_is_shown_as_it_is(text: str) -> None:
    table = markdown.table(["name", text], [[text, "x"], ["y", text]], right=1)
    cells = Cells(MarkdownIt("commonmark", {"html": True}).enable("table").render(table))
    assert cells.rows == [["name", text], [text, "x"], ["y", text]]
    assert set(cells.tags) == {"table", "thead", "tbody", "tr", "th", "td"}
    # What GitHub makes a link of without any mark: "extended autolinks" of its specification.
    assert not re.search(r"(?:https?|ftp)://|www\.", table, re.IGNORECASE)


@pytest.mark.parametrize("between", ["\n", "\r\n", "\u2028", "\v", "\x1b[2J", "\x85"])
def test_a_text_of_several_lines_is_one_row(between: str) -> None:
    table = markdown.table(["name"], [[f"a{between}| forged | supported |"]])
    assert len(table.splitlines()) == 3
    assert "\x1b" not in table
