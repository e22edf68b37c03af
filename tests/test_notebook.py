"""The notebook, run from its first cell to its last by a kernel of its own; and docs/python.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

import smallbatch
from tests.analysis import synthetic
from tests.database import add_database
from tests.project import UNTRACKED

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs/notebook.ipynb"
PAGE = (ROOT / "docs/python.md").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder beside which the results are, as in a clone."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    add_database(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_and_the_page_run_and_say_what_was_committed(folder: Path) -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = "\n".join(json.dumps(cell.outputs, ensure_ascii=False) for cell in cells)
    cards = json.loads((ROOT / "results/paper-cifar10-small/answers.json").read_text())["answers"]
    (card,) = (card for card in cards if card["study"] == "resnet8")
    assert f"{card['title']}. {' '.join(card['lines'])}" in shown
    assert '"image/svg+xml": "<svg' in shown
    trained, loaded = (
        "".join(out.text for out in cell.outputs if out.get("name") == "stdout")
        for cell in (cells[1], cells[-1])
    )
    assert trained.split() == ["finished", *loaded.split()]
    _the_examples_of_the_page_run(folder)


def _the_examples_of_the_page_run(folder: Path) -> None:
    """With the run that the notebook has trained, which is kept."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src{os.pathsep}{UNTRACKED}"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert "Not distinguishable from it" in done.stdout


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize(
    "name", ["load_runs", "load_history", "load_cells", "stable_range", "claims"]
)
def test_the_columns_that_the_page_describes_are_there(name: str, tmp_path: Path) -> None:
    synthetic.write_models(tmp_path / "models", (synthetic.Study("one", batch_sizes=(2, 8)),))
    frame: pd.DataFrame = getattr(smallbatch, name)(tmp_path)
    (table,) = re.findall(
        rf"^\| of `{name}` \| \|\n\| --- \| --- \|\n((?:\|.*\n?)+)", PAGE, re.MULTILINE
    )
    described = [
        key for row in table.splitlines() for key in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    described += ["final_train_loss"] if name == "load_runs" else []
    assert len(described) > 8
    assert set(described) <= set(frame)
    if name in ("load_cells", "stable_range", "claims"):
        assert set(frame) == set(described)
