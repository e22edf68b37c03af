"""One HTML document of its own: the page's template with its style, script, library and data."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import vl_convert

if TYPE_CHECKING:
    from collections.abc import Mapping

_FOLDER = Path(__file__).parent


def render(data: Mapping[str, object], **content: Any) -> str:
    """Fill the page's template.

    Args:
        data: What the script reads, as JSON by name.
        content: What the template shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        **content,
        data={name: embedded(each) for name, each in data.items()},
        css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        # Once for all figures.
        library=library(),
    )


@functools.cache
def library() -> str:
    """The JavaScript of Vega, Vega-Lite and Vega-Embed, which sets ``window.vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def embedded(content: object) -> str:
    """JSON that can stand inside a script element, whatever its texts are."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
