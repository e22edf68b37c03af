"""What the tests of lanes need."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smallbatch.engines.lanes.native import width


@pytest.fixture
def with_places(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Gives the native kernels' vectors so many places, whatever suits this machine."""

    def use(places: int) -> None:
        assert places in width.WIDTHS
        monkeypatch.setattr(width, "vector_width", lambda: places)

    return use
