from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="session")
def synthetic() -> SimpleNamespace:
    """The made-up studies of synthetic.py."""
    return SimpleNamespace(**_load())


def _load() -> dict[str, object]:
    return runpy.run_path(str(Path(__file__).with_name("synthetic.py")), run_name="synthetic")
