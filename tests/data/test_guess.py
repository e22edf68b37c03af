"""What is meant by `--data`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smallbatch.config.params import DatasetConfig
from smallbatch.data.guess import dataset_of
from smallbatch.data.prepare import prepare
from smallbatch.errors import UserError
from tests.data.conftest import encode, noise

Write = Callable[..., Path]
DATASETS = Path(__file__).resolve().parents[2].parent / "shared" / "datasets"


def told(config: DatasetConfig) -> dict[str, Any]:
    return config.model_dump(exclude_defaults=True)


def draw(root: Path, sizes: dict[str, int], shape: tuple[int, int] = (12, 12)) -> Path:
    """A folder for each class with so many images of a size (width, height)."""
    for name, size in sizes.items():
        (root / name).mkdir(parents=True)
        for index in range(size):
            Image.new("RGB", shape, (index, len(name), 7)).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100"])
def test_built_in_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(dataset_of(name)) == {"name": name, "source": name}
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / name, {"ant": 4, "bee": 4})
    assert told(dataset_of(name, image_size=16)) == {"name": name, "source": name, "image_size": 16}
    assert dataset_of(f"./{name}").path == str(tmp_path / name)


def test_a_folder_of_classes_is_prepared_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "My Flowers", {"ant": 8, "bee": 4})
    monkeypatch.chdir(tmp_path / "My Flowers")
    config = dataset_of(".")
    assert told(config) == {
        "name": "my-flowers", "source": "image_folder", "path": str(tmp_path / "My Flowers"),
        "image_size": 12, "test_fraction": 0.25,
    }  # fmt: skip
    assert prepare(config, tmp_path).counts == {"train": 9, "validation": 0, "test": 3}
    assert dataset_of(".", test_fraction=0.5, image_size=9) == config.model_copy(
        update={"test_fraction": 0.5, "image_size": 9}
    )


@pytest.mark.parametrize(
    ("splits", "fraction"),
    [(("train", "test"), None), (("train", "val"), None), (("train",), 0.25),
     (("train", "extra"), 0.25)],
)  # fmt: skip
def test_a_folder_with_splits(
    tmp_path: Path, splits: tuple[str, ...], fraction: float | None
) -> None:
    for split in splits:
        draw(tmp_path / "own" / split, {"ant": 4, "bee": 4}, (20, 30))
    config = dataset_of(str(tmp_path / "own"))
    assert (config.source, config.test_fraction) == ("image_folder", fraction)
    assert config.image_size is None  # of one shape, higher than wide
    meta = prepare(config, tmp_path)
    assert (meta.classes, meta.height, meta.width) == (("ant", "bee"), 30, 20)
    assert meta.counts["test"] == (8 if fraction is None else 2)


def test_shards(shards: Path, tmp_path: Path) -> None:
    config = dataset_of(str(shards))
    assert told(config) == {
        "name": "shards", "source": "parquet", "path": str(shards), "image_size": 4,
    }  # fmt: skip
    (shards / "test-00000-of-00001.parquet").rename(shards / "validation-00000-of-00001.parquet")
    assert dataset_of(str(shards)) == config
    (shards / "validation-00000-of-00001.parquet").unlink()
    assert dataset_of(str(shards)).test_fraction == 0.25
    (shards / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="says 2 shards, found 1"):
        dataset_of(str(shards))


@pytest.mark.parametrize("name", ["pictures", "0000", "Train"])
@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_one_parquet_file(tmp_path: Path, name: str, kind: str) -> None:
    images: Any = [encode(noise(row, 9, 70, 3)) for row in range(12)]
    if kind == "struct":
        images = [{"bytes": each, "path": None} for each in images]
    path = tmp_path / f"birds/{name}.parquet"
    path.parent.mkdir()
    table = pa.table({"photo": images, "species": ["kea", "kiwi"] * 6, "weight": [0.5] * 12})
    pq.write_table(table, path)
    config = dataset_of(str(path))
    assert told(config) == {
        "name": name.lower(), "source": "parquet", "path": str(path), "image_column": "photo",
        "label_column": "species", "image_size": 9, "test_fraction": 0.25,
    }  # fmt: skip
    meta = prepare(config, tmp_path)
    assert (meta.classes, meta.counts["train"], meta.counts["test"]) == (("kea", "kiwi"), 9, 3)
    folder = dataset_of(str(path.parent))
    assert folder.name == "birds"
    assert prepare(folder, tmp_path).fingerprint == meta.fingerprint


def no_images(path: Path) -> None:
    (path / "ant").mkdir(parents=True)
    (path / "ant/notes.txt").write_text("x")


def beside(path: Path) -> None:
    draw(path, {"ant": 3, "bee": 3})
    (path / "labels.parquet").write_bytes(b"x")


def loose(path: Path) -> None:
    draw(path, {"ant": 3, "bee": 3})
    shutil.copy(path / "ant/0.png", path)


def a_text(path: Path) -> None:
    path.write_text("x")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda _: None, r"--data: found '.*own', which is not there; allowed: digits, c"),
    "a text": (a_text, r"--data: found the file .*own; allowed: digits, .* or one Parquet file"),
    "empty": (Path.mkdir, r"own without images; allowed: files \.png .* in a folder for each c"),
    "no images": (no_images, r"own without images; allowed: files \.png"),
    "one class": (lambda path: draw(path, {"ant": 4}), r"own .*found 1 class; allowed: 2 or more"),
    "one image": (lambda path: draw(path, {"ant": 4, "bee": 1}), r"'bee' has 1 image; .* 2 a "),
    "both": (beside, r"own with images and with Parquet files, such as .*labels\.parquet; allowed"),
    "loose": (loose, r"own/0\.png: image outside a class; allowed: .*own/<class>/\*"),
    "only test": (lambda path: draw(path / "test", {"ant": 4, "bee": 4}), r"found test; allowed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_what_cannot_be_meant_is_one_line(tmp_path: Path, kind: str) -> None:
    make, said = WRONG[kind]
    make(tmp_path / "own")
    with pytest.raises(UserError, match=said) as caught:
        dataset_of(str(tmp_path / "own"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "~nobody-of-this-name/x", "a\0b", "x" * 5000])
def test_a_text_that_is_no_path(text: str) -> None:
    with pytest.raises(UserError, match="which is not there; allowed: digits"):
        dataset_of(text)


@pytest.mark.parametrize("size", [3, 2000])
def test_a_size_that_is_not_allowed(size: int) -> None:
    with pytest.raises(UserError, match=rf"--data: image_size: found {size}, allowed: "):
        dataset_of("digits", image_size=size)


def test_a_file_without_rows(tmp_path: Path, write_shard: Write) -> None:
    path = write_shard(tmp_path / "x.parquet", [], [])
    with pytest.raises(UserError, match=r"x\.parquet: found no row"):
        dataset_of(str(path))
    with pytest.raises(UserError, match=r"x\.parquet.*found 0 class"):
        dataset_of(str(path), image_size=8)


@pytest.mark.skipif(not DATASETS.is_dir(), reason="no data sets at ../shared/datasets")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", {"image_size": 32}),
        ("cifar100", {"label_column": "fine_label", "image_size": 32}),
        ("imagenette", {"image_column": "image", "image_size": 64}),
    ],
)
def test_real_shards_of_the_hub(name: str, expected: dict[str, Any]) -> None:
    path = (DATASETS / name).resolve()
    config = dataset_of(str(path))
    assert told(config) == {"name": name, "source": "parquet", "path": str(path), **expected}
