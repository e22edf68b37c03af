"""Examples in the documentation are accepted by the program."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import cast

import click
from ruamel.yaml import YAML

from smallbatch.cli import main
from smallbatch.config import parse_params

ROOT = Path(__file__).parents[1]


def test_the_params_of_the_how_to_are_valid() -> None:
    text = (ROOT / "docs/own-images.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    raw = YAML(typ="safe").load(textwrap.dedent(block))
    assert parse_params(raw, "docs/own-images.md").dataset.source == "image_folder"


def test_every_smallbatch_command_of_the_readme_parses() -> None:
    text = (ROOT / "README.md").read_text()
    lines = re.findall(r"smallbatch ((?:run|ui|sync|profile|plan|bench)\b[^#&\n`]*)", text)
    assert len(lines) >= 5
    for line in lines:
        name, *words = shlex.split(line)
        command = cast("click.Group", main).commands[name]
        if isinstance(command, click.Group):
            command, words = command.commands[words[0]], words[1:]
        command.make_context(name, words)
