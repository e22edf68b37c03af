"""What all tests share; read before what they test is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from smallbatch.machine import cache_folder

if TYPE_CHECKING:
    from smallbatch.data.prepared import Dataset

# One folder for all processes of these tests: the first makes it, before it starts the others.
if "SMALLBATCH_TEST_SHARED" not in os.environ:
    _shared = tempfile.mkdtemp(prefix="smallbatch-test-shared-")
    _first = os.getpid()  # its forks leave the folder alone
    atexit.register(lambda: os.getpid() == _first and shutil.rmtree(_shared, ignore_errors=True))
    os.environ["SMALLBATCH_TEST_SHARED"] = _shared
    # What this machine learnt elsewhere must not decide what a test does; sub-processes inherit it.
    # Kernels that were compiled elsewhere are the same.
    _cache = Path(_shared, "cache")
    _cache.mkdir(mode=0o700)
    for _kernels in cache_folder().glob("kernels-*.s*"):
        shutil.copy(_kernels, _cache)
    os.environ["SMALLBATCH_CACHE"] = str(_cache)

# As every training has it: more threads than cores would spin while they wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU, Triton's kernels run in its interpreter.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one of them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What sub-processes train is not written to MLflow: that takes as long as to train."""
    from tests.project import UNTRACKED

    path = filter(None, [os.environ.get("PYTHONPATH"), str(UNTRACKED)])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


@pytest.fixture
def noise() -> Dataset:
    """23 training and 11 test images of noise, 2×6×6, three classes."""
    from tests.noise import make_dataset

    return make_dataset()
