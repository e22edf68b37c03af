"""Every `smallbatch` command in the pages is one that the program takes; Python blocks run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import cast

import click
import pytest

from smallbatch.cli.main import main
from tests.docs.pages import GUIDES, ROOT, blocks

# What stands for the reader's own values.
PLACES = {"STUDY": "resnet8", "M": "8", "NAME": "quick", "DIR": "study", "FOLDER": "images"}
SHELLS = ("sh", "bash")
COMMAND = re.compile(r"(?:^|&&|;) *(?:[A-Z_]+=\S+ )*smallbatch ([^#&;|>\n]+)", re.MULTILINE)


def _commands(page: Path) -> list[str]:
    """The command lines of a page, in blocks and in the text."""
    text = page.read_text(encoding="utf-8")
    found: list[str] = []
    for block in blocks(page):
        if block.language in SHELLS:
            found += COMMAND.findall(block.text.replace("\\\n", " "))
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    # In a sentence a command may end in an ellipsis or leave its required arguments out.
    for code in re.findall(r"`([^`\n]+)`", prose):
        found += COMMAND.findall(code)
    return [line.strip() for line in found]


def _complaint(line: str) -> str:
    """What click says against a command line; empty if nothing."""
    line = re.sub(r'"\$\{[^"]*\}"|\$\w+', "8", line)
    words = [PLACES.get(word, word) for word in shlex.split(line)]
    command: click.Command = main
    while isinstance(command, click.Group):
        if words[0] in ("--help", "-h", "--version", "COMMAND"):
            return ""
        known = cast("click.Group", command).commands
        if words[0] not in known:
            return f"no command {words[0]!r}"
        command, words = known[words[0]], words[1:]
        if not words and isinstance(command, click.Group):
            return ""
    if "--help" in words:
        words.remove("--help")
    try:
        command.make_context(command.name or "", words)
    except click.MissingParameter:
        return ""
    except click.ClickException as error:
        said = error.format_message()
        return "" if said.endswith("does not exist.") else said  # a folder of the reader's
    return ""


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_every_smallbatch_command_is_one_that_the_program_takes(page: Path) -> None:
    complaints = {line: _complaint(line) for line in _commands(page)}
    assert {line: said for line, said in complaints.items() if said} == {}


def test_commands_are_found_and_wrong_ones_are_told() -> None:
    assert sum(len(_commands(page)) for page in GUIDES) > 100
    assert len(_commands(ROOT / "README.md")) > 10
    assert "no command" in _complaint("trian resnet8 8")
    assert "--quik" in _complaint("bench --quik")
    assert "3h" in _complaint("train resnet8 8 --time-limit 3hours")
    assert _complaint("train STUDY M") == ""


def _python(page: Path) -> str:
    return "\n".join(it.text for it in blocks(page) if it.language == "python" and it.executed)


# The first has changes of the sources, which tests/test_extending.py makes; the second is followed
# by tests/test_notebook.py, the third by tests/docs/test_own_model.py.
FOLLOWED = {"extending.md", "python.md", "own-model.md"}


def test_every_page_with_python_is_followed_by_a_test() -> None:
    assert {page.name for page in GUIDES if _python(page)} == FOLLOWED
