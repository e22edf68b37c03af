"""The documentation's pages and what is written in them."""

from __future__ import annotations

import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]

BLOCK = re.compile(
    r"(?P<mark><!-- not executed: .+? -->\n)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n"
    r"(?P<text>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and whether a comment says that it is not run."""

    language: str
    text: str
    executed: bool


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(found["language"], textwrap.dedent(found["text"]), found["mark"] is None)
        for found in BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


def sources(folder: Path) -> Path:
    """A copy of what the site is made from, in which mkdocs may write."""
    shutil.copy(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    shutil.copytree(DOCS, folder / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "src").symlink_to(ROOT / "src")
    return folder
