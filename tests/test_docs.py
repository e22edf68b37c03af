"""Examples in the documentation are accepted by the program."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import cast

import click
import pytest
from ruamel.yaml import YAML

from smallbatch.cli.main import main
from smallbatch.config import profiles
from smallbatch.config.params import parse_params

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


@pytest.mark.parametrize("scale", ["full", "small", "smoke"])
@pytest.mark.parametrize("name", ["paper-cifar10", "paper-cifar100"])
def test_a_profiles_head_says_how_many_runs_it_has(name: str, scale: str) -> None:
    text = profiles.read(name, None if scale == "full" else scale)
    (said,) = re.findall(rf"^#.* {scale} +([\d,]+) runs of", text, re.MULTILINE)
    raw = YAML(typ="safe").load(text)
    grid, studies = raw["grid"], raw["studies"]
    cells = len(grid["studies"]) * len(grid["batch_sizes"]) * len(grid["base_lrs"])
    for dependent in grid["dependent"]:
        sizes = studies[dependent["name"]]["bn_batch_sizes"]
        cells += sum(b <= m for m in grid["batch_sizes"] for b in sizes)
    assert int(said.replace(",", "")) == cells * grid["seeds"]
