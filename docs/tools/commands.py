"""The commands' reference: what mkdocs-click makes of them, with their examples as blocks."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING

from markdown import Markdown

if TYPE_CHECKING:
    from typing import Any

    from mkdocs.structure.pages import Page

EXAMPLES = re.compile(r"^Examples:\n((?: +.*\n)+)", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str | None:
    """Called by mkdocs for each page."""
    return reference(markdown) if page.file.src_uri == "cli.md" else None


def reference(markdown: str) -> str:
    """A page with the directive of mkdocs-click replaced by the text that it stands for."""
    preprocessors = Markdown(extensions=["mkdocs-click", "attr_list"]).preprocessors
    text = "\n".join(preprocessors["mk_click"].run(markdown.splitlines()))
    return EXAMPLES.sub(lambda it: f"```sh\n{textwrap.dedent(it[1])}```\n", text)
