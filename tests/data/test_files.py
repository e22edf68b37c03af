"""What of a folder counts, and that its listing changes with it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import DatasetConfig
from smallbatch.data.files import listing
from smallbatch.data.sources import source_files


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 2))


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image more": lambda f: (f / "train/ant/new.png").write_bytes(b"x"),
    "an image less": lambda f: (f / "train/ant/0.png").unlink(),
    "another name": lambda f: (f / "train/ant/0.png").rename(f / "train/ant/9.png"),
    "another size": lambda f: (f / "train/ant/0.png").write_bytes(b"x"),
    "another time": lambda f: _touch(f / "train/ant/0.png"),
    "a class more": lambda f: (f / "train/cat").mkdir(),
    "the target of a link": lambda f: _touch(f.parent / "target.png"),
}


@pytest.fixture
def linked(folder: Path) -> Path:
    """With a link to a file outside, one in a circle, one to nothing, and a FIFO."""
    (folder.parent / "target.png").write_bytes(b"x")
    (folder / "train/ant/link.png").symlink_to(folder.parent / "target.png")
    (folder / "train/circle").symlink_to(folder)
    (folder / "train/ant/nothing.png").symlink_to("absent")
    os.mkfifo(folder / "train/ant/fifo.png")
    return folder


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_listing_changes_with_the_files(linked: Path, change: str) -> None:
    before = listing(linked)
    assert listing(linked) == before
    CHANGES[change](linked)
    assert listing(linked) != before


def test_litter_does_not_change_it(linked: Path) -> None:
    before = listing(linked)
    (linked / "train/ant/Thumbs.db").write_bytes(b"x")
    (linked / ".ipynb_checkpoints").mkdir()
    assert listing(linked) == before


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ("image_folder", "/img", Path("/img")),
        ("parquet", "/shards", Path("/shards")),
        ("parquet", "/one.parquet", Path("/one.parquet")),
        ("cifar10", "/data", Path("/data/cifar-10-batches-py")),
        ("cifar100", None, Path("root/raw/cifar100/cifar-100-python")),
        ("digits", None, None),
    ],
)
def test_where_the_files_of_a_source_are(
    source: Any, path: str | None, expected: Path | None
) -> None:
    config = DatasetConfig(name="own", source=source, path=path)
    assert source_files(config, Path("root")) == expected


def test_one_file_has_a_listing_that_changes_with_it(tmp_path: Path) -> None:
    file = tmp_path / "one.parquet"
    file.write_text("ant")
    before = listing(file)
    (tmp_path / "other").write_text("x")
    assert listing(file) == before
    file.write_text("bee!")
    assert listing(file) != before


def test_pictures_that_are_exchanged_with_their_times_change_it(tmp_path: Path) -> None:
    """As `mv`, `cp -p` and `rsync -t` leave them."""
    for name in ("ant", "bee"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1.7e9, 1.7e9))
    before = listing(tmp_path)
    (tmp_path / "ant").rename(tmp_path / ".aside")
    (tmp_path / "bee").rename(tmp_path / "ant")
    (tmp_path / ".aside").rename(tmp_path / "bee")
    assert listing(tmp_path) != before
