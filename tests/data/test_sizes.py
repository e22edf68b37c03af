"""What size follows from the sizes of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from smallbatch.data.images import Encoded
from smallbatch.data.sizes import LOOKED_AT, side, sizes_below, sizes_of
from smallbatch.errors import UserError
from tests.data.conftest import encode, noise


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(24, 24)], 24),
        ([(24, 40)], None),  # of one shape, which they keep
        ([(24, 40), (40, 24)], 24),
        ([(64, 64)], 64),
        ([(65, 65)], 64),
        ([(90, 80), (200, 100)], 64),
        ([(5, 6), (6, 5)], 8),
    ],
)
def test_side(sizes: list[tuple[int, int]], expected: int | None) -> None:
    assert side(sizes) == expected


def test_sizes_of_files_and_bytes(folder: Path) -> None:
    (folder / "train/ant/0.png").write_bytes(encode(noise(0, 7, 9, 3)))
    assert sizes_below(folder) == [(5, 5), (9, 7)]
    assert sizes_of([Encoded("a", encode(noise(1, 3, 4)))]) == [(4, 3)]


def test_images_are_looked_at_evenly(tmp_path: Path) -> None:
    for index in range(2 * LOOKED_AT):
        size = 6 if index % 2 else 5
        (tmp_path / f"{index:03}.png").write_bytes(encode(noise(index, size, size, 3)))
    assert sizes_below(tmp_path) == [(5, 5)]


def test_what_is_no_image_is_named(folder: Path) -> None:
    (folder / "train/ant/0.png").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"train/ant/0\.png: not an image that can be read \(cannot"
    ):
        sizes_below(folder)
    with pytest.raises(
        UserError, match=r"^row 3: not an image that can be read \(Unid[a-zA-Z]+\)$"
    ):
        sizes_of([Encoded("row 3", b"x")])
