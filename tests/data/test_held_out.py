"""A test split held out of a source that has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.config.params import DatasetConfig
from smallbatch.data.expected import expected_meta, settings_digest
from smallbatch.data.held_out import hold_out
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import load_prepared
from smallbatch.data.split import Images, Labels, Rows, Split
from smallbatch.errors import UserError
from tests.data.conftest import encode, noise

Write = Callable[..., Path]
SIZES = {"ant": 40, "bee": 20, "cat": 8}


def pool_of(labels: Labels) -> Split:
    """Images of one pixel row, which holds the number of the image."""

    def read(rows: Rows) -> Images:
        assert rows.tolist() == sorted(rows.tolist())
        return np.tile(rows.astype(np.uint8)[:, None, None, None], (1, 1, 1, 2))

    return Split("pool", labels, read)


def parted(labels: Labels, fraction: float, seed: int = 0) -> tuple[list[int], list[int]]:
    classes = tuple("abcdefgh"[: labels.max() + 1])
    splits = hold_out(pool_of(labels), classes, fraction, seed)
    members: list[list[int]] = []
    for split in splits:
        rows = split.read(np.arange(len(split.labels)))[:, 0, 0, 0]
        np.testing.assert_array_equal(split.labels, labels[rows])
        members.append(rows.tolist())
    return members[0], members[1]


@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
)
def test_every_class_keeps_its_share_and_is_in_both_parts(
    sizes: list[int], fraction: float, seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    try:
        train, test = parted(labels, fraction, seed)
    except UserError as error:
        assert "a smaller fraction" in str(error)  # noqa: PT017
        assert fraction > 0.4
        return
    assert sorted(train + test) == list(range(len(labels)))
    held = np.bincount(labels[test], minlength=len(sizes))
    assert (held >= 1).all()
    assert (held < sizes).all()
    # Webster's shares are within a seat of the quota, but for the one that every class has.
    assert (held <= np.maximum(1, np.array(sizes) * fraction + 1.5)).all()
    assert (held >= np.array(sizes) * fraction - 1.5).all()


def test_equal_shares_where_they_come_out_even() -> None:
    labels = np.repeat(np.arange(3), (40, 20, 8))
    assert np.bincount(labels[parted(labels, 0.25)[1]]).tolist() == [10, 5, 2]


def test_the_rows_of_a_seed_are_pinned() -> None:
    """They must never change: prepared data sets are identified by content."""
    labels = np.repeat(np.arange(3), (9, 6, 3))
    assert parted(labels, 0.25, seed=7)[1] == [0, 6, 13, 16]


@pytest.mark.parametrize(("size", "said"), [(1, "1 image"), (0, "0 images")])
def test_a_class_with_too_few_images_is_named_with_what_it_needs(size: int, said: str) -> None:
    labels = np.repeat(np.arange(2), (10, size))
    with pytest.raises(UserError, match=rf"pool: class 'b' has {said}; allowed: at least 2 a"):
        hold_out(pool_of(labels), ("a", "b"), 0.25, 0)


def test_a_fraction_that_leaves_nothing_to_train_on_is_refused() -> None:
    labels = np.repeat(np.arange(2), (50, 2))
    with pytest.raises(UserError, match=r"found 0\.95, .* class 'b' of pool; allowed: a smaller"):
        hold_out(pool_of(labels), ("a", "b"), 0.95, 0)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Images of three classes, a folder for each; no two are alike."""
    seed = 0
    for name, size in SIZES.items():
        (tmp_path / "flat" / name).mkdir(parents=True)
        for index in range(size):
            seed += 1
            (tmp_path / "flat" / name / f"{index:02}.png").write_bytes(encode(noise(seed, 5, 5, 3)))
    return tmp_path / "flat"


def own(path: Path, **options: Any) -> DatasetConfig:
    settings = {"name": "own", "source": "image_folder", "path": str(path), "test_fraction": 0.25}
    return DatasetConfig.model_validate(settings | options)


def images_of(config: DatasetConfig, root: Path) -> dict[str, set[bytes]]:
    prepare(config, root)
    data = load_prepared(root / "prepared/own")
    return {
        split: {image.tobytes() for image in images}
        for split, images in (
            ("train", data.train_images),
            ("validation", data.validation_images),
            ("test", data.test_images),
        )
        if images is not None
    }


def test_a_folder_of_classes_is_parted_before_anything_else(flat: Path, tmp_path: Path) -> None:
    config = own(flat)
    meta = prepare(config, tmp_path)
    assert meta.classes == ("ant", "bee", "cat")
    assert meta.counts == {"train": 51, "validation": 0, "test": 17}
    data = load_prepared(tmp_path / "prepared/own")
    assert np.bincount(data.test_labels).tolist() == [10, 5, 2]
    assert expected_meta(config, tmp_path / "prepared/own") == (meta, True)
    whole = images_of(config, tmp_path)
    assert len(whole["train"] | whole["test"]) == 68
    less = images_of(own(flat, subset=30, validation_fraction=0.2), tmp_path)
    assert less["test"] == whole["test"]
    assert less["train"] | less["validation"] < whole["train"]
    assert images_of(own(flat, test_subset=6), tmp_path)["test"] < whole["test"]


def test_seed_and_images_decide_the_parts_and_their_place_does_not(
    flat: Path, tmp_path: Path
) -> None:
    first = prepare(own(flat), tmp_path / "a").fingerprint
    copy = shutil.copytree(flat, tmp_path / "elsewhere")
    assert prepare(own(copy), tmp_path / "b").fingerprint == first
    assert prepare(own(flat, seed=1), tmp_path / "c").fingerprint != first
    assert settings_digest(own(flat)) != settings_digest(own(flat, test_fraction=0.5))


@pytest.mark.parametrize("train", ["train", "Training"])
def test_a_training_split_alone_is_parted(flat: Path, tmp_path: Path, train: str) -> None:
    below = images_of(own(flat), tmp_path)
    (tmp_path / "splits").mkdir()
    flat.rename(tmp_path / "splits" / train)
    assert images_of(own(tmp_path / "splits"), tmp_path) == below


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_test_split_beside_a_test_fraction_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    (folder / "test").rename(folder / name)
    said = (
        rf"dataset\.test_fraction: found with .*images, which has the test split {name}; "
        "allowed: where there is none"
    )
    with pytest.raises(UserError, match=said):
        prepare(own(folder), tmp_path)


def test_classes_that_are_called_like_splits(flat: Path, tmp_path: Path) -> None:
    (flat / "ant").rename(flat / "train")
    (flat / "bee").rename(flat / "test")
    assert prepare(own(flat), tmp_path).classes == ("cat", "test", "train")


def test_a_split_that_is_not_used_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "test").rename(folder / "extra")
    said: list[object] = []
    meta = prepare(own(folder), tmp_path, say=said.append)
    assert meta.counts == {"train": 4, "validation": 0, "test": 2}
    assert said == [f"{folder}: runs train on train; extra not used"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"test_fraction": None}, r"found ant, bee, cat; allowed: .*dataset\.test_fraction"),
        ({"test_split": "val"}, r"dataset\.test_split: found 'val' beside test_fraction"),
        ({"source": "cifar10"}, r"test_fraction: found 0\.25 with source cifar10"),
    ],
)
def test_settings_that_do_not_fit(
    flat: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        prepare(own(flat, **options), tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_one_class_and_a_class_with_one_image(flat: Path, tmp_path: Path) -> None:
    for file in sorted((flat / "bee").iterdir())[1:]:
        file.unlink()
    with pytest.raises(UserError, match=r"flat: class 'bee' has 1 image; allowed: at least 2"):
        prepare(own(flat), tmp_path)
    shutil.rmtree(flat / "bee")
    shutil.rmtree(flat / "cat")
    with pytest.raises(UserError, match=r"flat .*: found 1 class; allowed: 2 or more"):
        prepare(own(flat), tmp_path)


@pytest.mark.parametrize("name", ["pictures", "train", "train-00000-of-00001", "0000"])
def test_one_parquet_file(tmp_path: Path, write_shard: Write, name: str) -> None:
    images = [encode(noise(row, 4, 4, 3)) for row in range(20)]
    path = write_shard(
        tmp_path / f"own/{name}.parquet", images, [0, 1] * 10, ["cat", "dog"], row_group_size=3
    )
    found = images_of(own(path, source="parquet"), tmp_path)
    assert (len(found["train"]), len(found["test"])) == (15, 5)
    assert not found["train"] & found["test"]
    if name != "0000":  # by which a folder names no split
        assert images_of(own(path.parent, source="parquet"), tmp_path) == found
    with pytest.raises(UserError, match=r"found .*, which is not a folder; .*test_fraction"):
        prepare(own(path, source="parquet", test_fraction=None), tmp_path)


def test_shards_with_a_test_split_are_refused(shards: Path, tmp_path: Path) -> None:
    config = own(shards, source="parquet")
    with pytest.raises(UserError, match=r"has the test split test; allowed: where there is none"):
        prepare(config, tmp_path)
    (shards / "test-00000-of-00001.parquet").unlink()
    assert prepare(config, tmp_path).counts == {"train": 15, "validation": 0, "test": 5}
    for shard in shards.iterdir():
        shard.rename(shard.with_name(shard.name.replace("train", "pictures")))
    assert prepare(config, tmp_path).counts == {"train": 15, "validation": 0, "test": 5}
