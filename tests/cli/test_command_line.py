"""The page about the command line: its commands are all there, and its completion completes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from smallbatch.cli.main import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/command-line.md").read_text()


def commands(group: click.Group, before: str) -> Iterator[str]:
    """Every command that does something, in words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}"


def test_the_page_has_each_command_once() -> None:
    listed = re.findall(r"^\| `(smallbatch [a-z ]+[a-z])[A-Z ]*` \|", PAGE, re.MULTILINE)
    assert sorted(listed) == sorted(commands(main, "smallbatch"))


def line_for(shell: str) -> str:
    """What the page tells a shell to read."""
    found = re.search(rf"```{shell}\n(.*)\n```", PAGE)
    assert found
    return found.group(1)


def shell(*words: str) -> str:
    """What a shell prints, with this checkout's `smallbatch` on its path."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
    }
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("smallbatch ev", ["evaluate"]),
        ("smallbatch claims --ma", ["--markdown"]),
        ("smallbatch profile ", ["list", "show", "use"]),
        ("smallbatch run --device c", ["cpu", "cuda"]),
    ],
)
def test_bash_completes(typed: str, completed: list[str]) -> None:
    words = typed.split(" ")
    program = (
        f"{line_for('bash')}\n"
        'handler="$(complete -p smallbatch | sed "s/.*-F \\([^ ]*\\).*/\\1/")"\n'
        f"COMP_WORDS=({' '.join(words[:-1])} '{words[-1]}') COMP_CWORD={len(words) - 1}\n"
        '"$handler" smallbatch\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert sorted(shell("bash", "--norc", "-c", program).split()) == completed


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells_get_a_script_of_their_own(name: str) -> None:
    """Of which nothing more is known here than that it is for them."""
    found = re.search(r"_SMALLBATCH_COMPLETE=\w+ smallbatch", line_for(name))
    assert found
    script = shell("bash", "--norc", "-c", found.group(0))
    begins = {"zsh": "#compdef smallbatch", "fish": "complete --no-files --command smallbatch"}
    assert begins[name] in script
