from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SYNTHETIC = Path(__file__).parents[1] / "analysis" / "synthetic.py"


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """The made-up studies of tests/analysis/synthetic.py."""
    return SimpleNamespace(**runpy.run_path(str(SYNTHETIC), run_name="synthetic"))
