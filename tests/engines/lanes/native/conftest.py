"""What the native kernels' tests need."""

from __future__ import annotations

import pytest

from smallbatch.engines.lanes.native.compiler import compiler


@pytest.fixture(scope="session", autouse=True)
def a_compiler() -> None:
    if compiler() is None:
        pytest.skip("needs a C++ compiler: c++, g++ or clang++ on PATH, or $CXX")
