"""Links that leave docs/, which a Git host follows and a site cannot.

They become links into the repository if ``repo_url`` and ``edit_uri`` name one, and otherwise the
file's path beside the link's words.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from mkdocs.structure.pages import Page

LINK = re.compile(r"\[(?P<words>[^\]]+)\]\((?P<target>\.\./[^)#\s]*)(?P<part>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Page, config: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def outside(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found["target"]))
        if path.startswith("docs/"):
            return found[0]
        if config.repo_url and config.edit_uri:
            base = posixpath.join(config.repo_url, config.edit_uri.removesuffix("docs/"))
            return f"[{found['words']}]({posixpath.join(base, path)}{found['part'] or ''})"
        return f"{found['words']} (`{path}`)"

    return LINK.sub(outside, markdown)
