"""The page of `smallbatch advise`: one HTML file that runs nothing and fetches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from smallbatch.report import advice_words as words
from smallbatch.report.advice_figures import WIDTHS, accuracy_figure, range_figure, shown_cells
from smallbatch.report.advice_tables import final_table, raced_table, range_table
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable

    from smallbatch.analysis.advice import Advice
    from smallbatch.report.tables import Table

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """A picture of the page: a title, how to read it, and its SVG for each of `WIDTHS`."""

    name: str
    title: str
    caption: str
    svgs: dict[str, str]


def advice_page(advice: Advice) -> str:
    """The whole page, of which an `Advice` decides every byte."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    answer = words.answer(advice)
    sheets = [_FOLDER / name for name in ("page.css", "advice.css")]
    return environment.get_template("advice.html.j2").render(
        advice=advice,
        css="".join(sheet.read_text(encoding="utf-8") for sheet in sheets),
        settings=words.settings(advice),
        spent=words.spent(advice),
        headline=_joined(words.headline(advice)),
        answer=[_joined(line) for line in answer or advice.warnings],
        answered=bool(answer),
        sure=_sure(advice),
        warned=count(len(advice.warnings), "warning"),
        pictures=_pictures(advice),
        tables=_tables(advice),
        diagnostics=words.diagnostics(advice),
    )


def _joined(text: str) -> str:
    """A sentence in which no line breaks around an = or before a %."""
    return text.replace(" = ", "\u00a0=\u00a0").replace(" %", "\u00a0%")


def _sure(advice: Advice) -> str:
    """The colour of the answer: green if it is better than all, orange if others may be as good."""
    if advice.recommended is None or not advice.recommended.beyond_chance:
        return ""
    final = advice.final
    better = final is not None and final.low is not None and final.low > 0
    return "clear" if better and not words.others_tied(advice) else "open"


def _pictures(advice: Advice) -> list[Picture]:
    pictures: list[Picture] = []
    rate = words.rate_name(advice)
    if shown_cells(advice):
        caption = (
            f"A curve for each batch size: its best raced {rate}, mean of the seeds on the "
            "validation split, by time of one training alone on this machine. "
            "Thick, with ★: recommended; “tied”: cannot be told from it. A filled end was trained "
            "to the end, an open one stopped before, a cross had a seed that diverged."
        )
        title = "Accuracy against time of training"
        pictures.append(Picture("time", title, caption, _svgs(advice, accuracy_figure)))
    if advice.ranges:
        caption = (
            f"Every {rate} tried at each batch size. Dot: every seed survived; ring: some did; "
            "grey cross: none. The bar is the stable range, which ends in a line where the next "
            f"{rate} breaks, in a triangle where none broke. Open diamond: the best {rate} of this "
            "batch size; filled: recommended."
        )
        title = "Where training is stable"
        pictures.append(Picture("stable", title, caption, _svgs(advice, range_figure)))
    return pictures


def _svgs(advice: Advice, draw: Callable[[Advice, int], str]) -> dict[str, str]:
    return {kind: draw(advice, width) for kind, width in WIDTHS.items()}


def _tables(advice: Advice) -> list[Table]:
    raced = [raced_table(advice)] if advice.raced else []
    final = final_table(advice)
    return [
        *raced,
        *([final] if final else []),
        *([range_table(advice)] if advice.ranges else []),
    ]
