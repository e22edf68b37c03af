"""The tutorial as a newcomer follows it: its blocks, one after the other, in one shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, blocks

pytestmark = pytest.mark.slow
PAGE = DOCS / "tutorial.md"


def test_a_newcomer_gets_from_nothing_to_a_comparison(tmp_path: Path) -> None:
    found = [block for block in blocks(PAGE) if block.language == "sh"]
    script = "".join(block.text for block in found if block.executed)
    assert len(found) - sum(block.executed for block in found) == 2  # a browser and a server
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    environment = {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        # The kernels of all tests: to compile them anew takes long.
        "SMALLBATCH_CACHE": os.environ["SMALLBATCH_CACHE"],
        "DVC_SITE_CACHE_DIR": str(tmp_path / "dvc"),
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    study = work / "my-study"
    assert (study / "reports/report.html").stat().st_size > 100_000
    before = json.loads((study / "before.json").read_text())["answers"]
    after = json.loads((study / "reports/answers.json").read_text())["answers"]
    assert len(before) == len(after) > 0
    assert before != after
    # "Only the new columns train": each column's command was called once.
    trained = [line for line in done.stdout.splitlines() if line.startswith("Running stage 'train")]
    columns = list(study.glob("models/*/*/m*"))
    assert len(trained) == len(set(trained)) == len(columns)
