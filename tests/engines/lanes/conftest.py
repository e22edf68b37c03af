"""What the tests of lanes need."""

from __future__ import annotations

from collections.abc import Callable, Generator

import pytest

from smallbatch.engines.lanes.native import compile as kernels
from smallbatch.engines.lanes.native import width


@pytest.fixture
def with_places(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[int], None]]:
    """Gives the native kernels' vectors so many places, whatever suits this machine."""

    def use(places: int) -> None:
        assert places in width.WIDTHS
        monkeypatch.setattr(width, "vector_width", lambda: places)
        kernels._found.cache_clear()

    yield use
    kernels._found.cache_clear()
