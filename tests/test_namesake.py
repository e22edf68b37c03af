"""Another project's distribution, `smallbatch`, over this one's files: told before all else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smallbatch.namesake import PACKAGE, clash


def installed(site: Path, name: str, *files: str) -> None:
    """A distribution as pip leaves it."""
    folder = site / f"{name}.dist-info"
    folder.mkdir(parents=True)
    (folder / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in files))


@pytest.mark.parametrize(
    ("name", "file", "clashes"),
    [
        ("smallbatch-0.2.0", "smallbatch/__init__.py", True),
        ("smallbatch_study-0.1.0", "smallbatch/__init__.py", False),
        # What an editable install of an earlier name leaves writes no module.
        ("smallbatch-0.1.0", "__editable__.smallbatch-0.1.0.pth", False),
    ],
)
def test_a_distribution_that_has_written_the_same_files_is_named(
    tmp_path: Path, name: str, file: str, clashes: bool
) -> None:
    installed(tmp_path, name, file)
    line = clash(tmp_path / "smallbatch")
    assert (line is not None) == clashes
    if line is not None:
        assert "smallbatch 0.2.0" in line
        assert "pip uninstall smallbatch smallbatch-study" in line


def test_the_command_says_it_in_a_line_before_all_else(tmp_path: Path) -> None:
    (tmp_path / PACKAGE.name).symlink_to(PACKAGE)
    installed(tmp_path, "smallbatch-0.2.0", "smallbatch/__init__.py", "smallbatch/cli.py")
    (tmp_path / "click.py").write_text("raise ValueError('of the other project')\n")
    for words in (["--help"], ["prepare"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "smallbatch", *words],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"Error: {tmp_path / 'smallbatch'}: ")
