"""Every page as Markdown beside its HTML, and llms.txt, which lists them with a line on each.

llms.txt lies in docs/, and so also at the site's root. Run it after a change of the pages or of the
nav: ``python docs/tools/llms.py``. A test compares the file with them.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML

import smallbatch

if TYPE_CHECKING:
    from typing import Any

    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FILE = DOCS / "llms.txt"


def on_page_content(_html: str, page: Page, config: Any, **_: Any) -> None:
    """Called by mkdocs for each page."""
    if page.file.src_uri.endswith(".md"):
        target = Path(config.site_dir, page.file.src_uri)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_source(page), encoding="utf-8")


def listing() -> str:
    """The content of llms.txt."""
    loader = YAML(typ="rt")  # keeps mkdocs' tags as they are
    site = loader.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}", ""]
    for entry in site["nav"]:
        for title, pages in entry.items():
            if isinstance(pages, str):
                lines += [_line(pages), ""]
            else:
                there = (name for name in pages if (DOCS / name).exists())
                lines += [f"## {title}", "", *map(_line, there), ""]
    return "\n".join(lines).rstrip() + "\n"


def _line(name: str) -> str:
    title, first = described(DOCS / name)
    return f"- [{title}]({name}): {first}"


def described(path: Path) -> tuple[str, str]:
    """A page's title and its first sentence."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text)]
    title = next(block for block in blocks if block.startswith("# ")).splitlines()[0][2:]
    first = next(_prose(blocks))
    return title, re.split(r"(?<=[.?])\s", first)[0]


def _prose(blocks: list[str]) -> Iterator[str]:
    """The paragraphs, each on a line and without links and marks."""
    for block in blocks:
        text = re.sub(r"^# .*\n?", "", block)
        if text and not re.match(r"[#<|>!:-]|\d+\.", text):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))
            yield re.sub(r"[*`]", "", plain)


def _source(page: Page) -> str:
    """A page as it is written, but what mkdocs puts in."""
    if page.file.src_uri == "cli.md":  # its commands are in it by now
        return page.markdown or ""
    text = (DOCS / page.file.src_uri).read_text(encoding="utf-8")
    return text.partition("<!--")[0] + _docstrings() if page.file.src_uri == "api.md" else text


def _docstrings() -> str:
    """What the package offers: signatures and docstrings."""
    parts: list[str] = []
    for name in smallbatch.__all__:
        found = getattr(smallbatch, name)
        function = inspect.isfunction(found)
        head = f"{name}{inspect.signature(found)}" if function else f"class {name}"
        parts.append(f"## {name}\n\n```text\n{head}\n\n{inspect.getdoc(found)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    FILE.write_text(listing(), encoding="utf-8")
