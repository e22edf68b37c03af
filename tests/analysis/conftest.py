from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """The made-up studies of synthetic.py."""
    path = Path(__file__).with_name("synthetic.py")
    return SimpleNamespace(**runpy.run_path(str(path), run_name="synthetic"))
