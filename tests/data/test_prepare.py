import hashlib
import json
import os
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from smallbatch.config.params import DatasetConfig
from smallbatch.data import prepare as preparing
from smallbatch.data.prepare import assemble, channel_statistics, prepare
from smallbatch.data.prepared import Dataset, load_prepared
from smallbatch.data.scratch import scratch_folder
from smallbatch.data.split import Source, Split
from smallbatch.errors import UserError

CIFAR10 = Path(__file__).resolve().parents[2].parent / "shared" / "datasets" / "cifar10"
needs_cifar10 = pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="no CIFAR-10 Parquet shards at ../shared/datasets/cifar10"
)


def digits(**options: Any) -> DatasetConfig:
    return DatasetConfig(name="toy", source="digits", **options)


def prepared(config: DatasetConfig, root: Path) -> Dataset:
    meta = prepare(config, root)
    dataset = load_prepared(root / "prepared" / config.name)
    assert dataset.meta == meta
    return dataset


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    dataset = prepared(digits(), tmp_path)
    meta = dataset.meta
    assert (meta.channels, meta.height, meta.width) == (1, 8, 8)
    assert meta.classes == tuple("0123456789")
    assert meta.counts == {"train": 1437, "validation": 0, "test": 360}
    images = np.concatenate([dataset.train_images, dataset.test_images])
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    original: Any = load_digits()
    scaled = np.floor(original.images * 255 / 16 + 0.5).astype(np.uint8)
    assert sorted(
        (label, image.tobytes()) for label, image in zip(labels, images, strict=True)
    ) == (
        sorted(
            (label, image.tobytes()) for label, image in zip(original.target, scaled, strict=True)
        )
    )
    shares = np.bincount(dataset.test_labels) / np.bincount(original.target)
    assert np.abs(shares - 360 / 1797).max() < 0.005


def test_statistics_are_those_of_the_training_split(tmp_path: Path) -> None:
    dataset = prepared(digits(subset=200, validation_fraction=0.25, seed=4), tmp_path)
    pixels = dataset.train_images.astype(np.float64) / 255
    assert dataset.meta.mean == pytest.approx([pixels.mean()], rel=1e-12)
    assert dataset.meta.std == pytest.approx([pixels.std()], rel=1e-12)


def test_statistics_by_channel_and_of_a_constant_one() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 4, 5), dtype=np.uint8)
    images[:, 1] = 77
    mean, std = channel_statistics(images)
    pixels = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 2, 3)), rtol=1e-12, atol=1e-12)
    assert std[1] == 0.0


def test_same_configuration_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        prepare(digits(subset=100, validation_fraction=0.1), tmp_path / name)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_seed_governs_subset_and_validation_but_not_the_test_split(tmp_path: Path) -> None:
    first, second = (
        prepared(digits(subset=100, validation_fraction=0.2, seed=seed), tmp_path)
        for seed in (0, 1)
    )
    assert first.meta.fingerprint != second.meta.fingerprint
    np.testing.assert_array_equal(first.test_images, second.test_images)
    assert not np.array_equal(first.train_images, second.train_images)


def test_name_does_not_enter_the_fingerprint(tmp_path: Path) -> None:
    other = DatasetConfig(name="other", source="digits", subset=100)
    assert prepare(other, tmp_path).fingerprint == prepare(digits(subset=100), tmp_path).fingerprint


def test_subset_is_balanced_and_validation_comes_out_of_it(tmp_path: Path) -> None:
    whole = prepared(digits(subset=203, test_subset=55, seed=2), tmp_path)
    parted = prepared(digits(subset=203, test_subset=55, seed=2, validation_fraction=0.3), tmp_path)
    assert parted.meta.counts == {"train": 142, "validation": 61, "test": 55}
    assert set(np.bincount(whole.train_labels)) == {20, 21}
    assert set(np.bincount(whole.test_labels)) == {5, 6}
    assert parted.validation_images is not None
    assert parted.validation_labels is not None
    assert set(np.bincount(parted.validation_labels)) <= {6, 7}
    together = np.concatenate([parted.train_images, parted.validation_images])
    assert sorted(image.tobytes() for image in together) == sorted(
        image.tobytes() for image in whole.train_images
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 1438}, r"dataset\.subset: found 1438; allowed: 10 .* to 1437"),
        ({"subset": 9}, r"dataset\.subset: found 9; allowed: 10 .* to 1437"),
        ({"test_subset": 361}, r"dataset\.test_subset: found 361; allowed: 10 .* to 360"),
        ({"test_subset": 3}, r"dataset\.test_subset: found 3; allowed: 10 .* to 360"),
        (
            {"subset": 30, "validation_fraction": 0.1},
            r"dataset\.validation_fraction: found 0\.1, .* out of the validation split of 30",
        ),
        (
            {"subset": 30, "validation_fraction": 0.95},
            r"dataset\.validation_fraction: found 0\.95, .* out of the training split of 30",
        ),
        ({"validation_fraction": 1e-9}, r"dataset\.validation_fraction: found 1e-09"),
        ({"path": "somewhere"}, r"dataset\.path: found 'somewhere' with source digits"),
        ({"image_column": "x"}, r"dataset\.image_column: found 'x' with source digits"),
        ({"label_column": "x"}, r"dataset\.label_column: found 'x' with source digits"),
    ],
)
def test_impossible_options_name_the_key_and_write_nothing(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepare(digits(**options), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("source", ["parquet", "image_folder"])
@pytest.mark.parametrize(
    ("path", "message"),
    [(None, "missing"), ("nowhere", "nowhere"), ("~no-such-user/x", "home directory")],
)
def test_path_is_required(tmp_path: Path, source: Any, path: str | None, message: str) -> None:
    config = DatasetConfig(name="toy", source=source, path=path)
    with pytest.raises(UserError, match=rf"dataset\.path: .*({message})"):
        prepare(config, tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_resizing_digits(tmp_path: Path) -> None:
    dataset = prepared(digits(subset=20, image_size=12), tmp_path)
    assert dataset.train_images.shape == (20, 1, 12, 12)
    assert dataset.test_images.shape == (360, 1, 12, 12)


def test_image_folder(folder: Path, tmp_path: Path) -> None:
    config = DatasetConfig(name="own", source="image_folder", path=str(folder), image_size=4)
    dataset = prepared(config, tmp_path / "data")
    assert dataset.meta.counts == {"train": 6, "validation": 0, "test": 4}
    assert dataset.meta.classes == ("ant", "bee")
    assert dataset.train_images.shape == (6, 3, 4, 4)


def test_colour_in_one_split_makes_both_colour(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    for path in (folder / "train").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    config = DatasetConfig(name="own", source="image_folder", path=str(folder))
    dataset = prepared(config, tmp_path / "data")
    assert dataset.meta.channels == 3
    np.testing.assert_array_equal(dataset.train_images[:, 0], dataset.train_images[:, 2])
    for path in (folder / "test").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    assert prepared(config, tmp_path / "data").meta.channels == 1


def test_splits_of_different_size_need_image_size(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    for path in (folder / "test").rglob("*.png"):
        Image.open(path).resize((7, 6)).save(path)
    config = DatasetConfig(name="own", source="image_folder", path=str(folder))
    with pytest.raises(UserError, match=r"test: found 6x7 .*train has 5x5.*dataset\.image_size"):
        prepare(config, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_failure_keeps_what_was_prepared_before(folder: Path, tmp_path: Path) -> None:
    config = DatasetConfig(name="own", source="image_folder", path=str(folder))
    prepare(config, tmp_path / "data")
    before = tree(tmp_path / "data")
    image = folder / "test/bee/1.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(UserError, match=r"test/bee/1\.png: "):
        prepare(config, tmp_path / "data")
    assert tree(tmp_path / "data") == before


def test_damage_outside_the_subset_goes_unread(
    shards: Path, write_shard: Callable[..., Path], tmp_path: Path
) -> None:
    config = DatasetConfig(name="own", source="parquet", path=str(shards), subset=4, test_subset=2)
    intact = prepared(config, tmp_path / "data")
    every = prepared(DatasetConfig(name="all", source="parquet", path=str(shards)), tmp_path / "d")
    chosen = {image.tobytes() for image in intact.train_images}
    unused = [i for i, image in enumerate(every.train_images) if image.tobytes() not in chosen]
    assert len(unused) == 16
    import pyarrow.parquet as pq

    start = 0
    for path in sorted(shards.glob("train-*")):
        rows = pq.read_table(path).to_pylist()
        contents = [
            b"damaged" if start + i in unused else row["img"]["bytes"] for i, row in enumerate(rows)
        ]
        write_shard(path, contents, [row["label"] for row in rows], ["cat", "dog"])
        start += len(rows)
    assert prepared(config, tmp_path / "data").meta.fingerprint == intact.meta.fingerprint


@pytest.mark.parametrize(
    ("names", "labels", "message"),
    [
        (["a", "b", "c"], [0, 1], r"train-0\.parquet: class 'c' has no images"),
        (["a", "a"], [0, 1], r"two classes are called 'a'"),
        (["a"], [0, 0], r"found 1 class; allowed: 2 or more"),
        (["a", "\ud800"], [0, 1], r"valid Unicode"),
        ([0, 1], [0, 1], r"not a list of text"),
    ],
)
def test_classes_must_make_sense(
    tmp_path: Path, write_shard: Callable[..., Path], names: Any, labels: Any, message: str
) -> None:
    for split in ("train", "test"):
        write_shard(tmp_path / "s" / f"{split}-0.parquet", [b"", b""], labels, names)
    config = DatasetConfig(name="own", source="parquet", path=str(tmp_path / "s"))
    with pytest.raises(UserError, match=message):
        prepare(config, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@needs_cifar10
def test_real_cifar10_subset(tmp_path: Path) -> None:
    config = DatasetConfig(
        name="c10",
        source="parquet",
        path=str(CIFAR10),
        subset=1000,
        test_subset=500,
        validation_fraction=0.1,
    )
    dataset = prepared(config, tmp_path)
    meta = dataset.meta
    assert meta.classes[0] == "airplane"
    assert meta.classes[9] == "truck"
    assert meta.counts == {"train": 900, "validation": 100, "test": 500}
    assert np.bincount(dataset.train_labels).tolist() == [90] * 10
    assert np.bincount(dataset.test_labels).tolist() == [50] * 10
    assert np.abs(np.array(meta.mean) - [0.4914, 0.4822, 0.4465]).max() < 0.02
    text = (tmp_path / "prepared/c10/meta.json").read_text()
    assert json.loads(text)["fingerprint"] == meta.fingerprint
    assert str(CIFAR10) not in text


@pytest.mark.slow
@needs_cifar10
def test_real_cifar10_whole(tmp_path: Path) -> None:
    config = DatasetConfig(name="c10", source="parquet", path=str(CIFAR10))
    dataset = prepared(config, tmp_path)
    meta = dataset.meta
    assert meta.counts == {"train": 50_000, "validation": 0, "test": 10_000}
    assert (meta.channels, meta.height, meta.width) == (3, 32, 32)
    assert np.bincount(dataset.train_labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    assert [round(value, 4) for value in meta.mean] == [0.4914, 0.4822, 0.4465]
    assert [round(value, 4) for value in meta.std] == [0.2470, 0.2435, 0.2616]


def test_what_killed_processes_left_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    for name in (".digits-abcdefgh", ".digits-2-abcdefgh"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train_images.npy").write_bytes(b"much")
    with scratch_folder(tmp_path, "digits") as first:
        with scratch_folder(tmp_path, "digits") as second:
            assert first.is_dir()
            assert second.is_dir()
            assert not (tmp_path / ".digits-abcdefgh").exists()
        assert first.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [".digits-2-abcdefgh"]


@pytest.mark.parametrize("plant", [os.mkfifo, Path.touch])
def test_what_is_no_folder_at_the_place_of_a_left_over_is_left_alone(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    path = tmp_path / ".digits-abcdefgh"
    plant(path)

    def wait_in_vain(*_: object) -> None:
        raise TimeoutError("it waits for a writer of the pipe")

    before = signal.signal(signal.SIGALRM, wait_in_vain)
    signal.alarm(5)
    began = time.monotonic()
    try:
        with scratch_folder(tmp_path, "digits"):
            pass
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 4
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


def test_what_is_not_of_a_data_set_is_not_replaced(tmp_path: Path) -> None:
    """A link in a project of somebody else's may lead to any folder."""
    precious = tmp_path / "home/thesis"
    precious.mkdir(parents=True)
    (precious / "thesis.txt").write_text("years of work")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(tmp_path / "home")
    config = DatasetConfig(name="thesis", source="digits", subset=40, test_subset=20)
    with pytest.raises(UserError, match=r"'thesis\.txt' is none of the files to be replaced"):
        prepare(config, tmp_path / "data")
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


def test_a_hundred_thousand_class_names_take_no_time(tmp_path: Path) -> None:
    many = 100_000
    labels = np.arange(many)
    split = Split("many", labels, lambda rows: np.zeros((len(rows), 1, 1, 1), dtype=np.uint8))
    names = tuple(f"class {index}" for index in range(many))
    config = DatasetConfig(name="many", source="digits")
    start = time.process_time()
    assert assemble(config, Source(names, split, split)).meta.classes == names
    with pytest.raises(UserError, match="two classes are called 'class 7'"):
        assemble(config, Source((*names[:-1], "class 7"), split, split))
    assert time.process_time() - start < 5


def test_statistics_of_large_images_take_little_memory() -> None:
    """Counts of 8 bytes for each pixel of 1024 images at once would be twenty times the images."""
    images = np.zeros((100, 1, 512, 512), dtype=np.uint8)
    images[1] = 255
    tracemalloc.start()
    mean, std = channel_statistics(images)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mean == pytest.approx((0.01,))
    assert std == pytest.approx((np.sqrt(0.01 * 0.99),))
    assert peak < images.nbytes


def test_no_memory_for_preparing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 7.25 GiB")

    monkeypatch.setattr(preparing, "channel_statistics", fail)
    with pytest.raises(
        UserError, match=r"not enough memory to prepare d \(.* 7\.25 GiB\); allowed"
    ):
        prepare(DatasetConfig(name="d", source="digits"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["test_split", "max_megapixels"])
def test_options_of_files_do_not_apply_to_digits(tmp_path: Path, key: str) -> None:
    config = DatasetConfig.model_validate(
        {"name": "d", "source": "digits", key: {"test_split": "val", "max_megapixels": 9}[key]}
    )
    with pytest.raises(UserError, match=rf"dataset\.{key}: found .* parquet or image_folder only"):
        prepare(config, tmp_path)


def test_the_options_of_files_reach_them(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    shutil.copytree(folder / "test", folder / "val")
    (folder / "val/ant/0.png").unlink()
    raw = {"name": "own", "source": "image_folder", "path": str(folder)}
    prepare(DatasetConfig.model_validate(raw), tmp_path, say=said.append)
    assert ["; val not used " in line for line in said] == [True]
    meta = prepare(DatasetConfig.model_validate(raw | {"test_split": "val"}), tmp_path)
    assert meta.counts["test"] == 3
    Image.new("RGB", (1500, 1000)).save(folder / "train/ant/0.png")
    limited = raw | {"max_megapixels": 1, "image_size": 5}
    with pytest.raises(UserError, match="2 megapixels; allowed: up to 1, "):
        prepare(DatasetConfig.model_validate(limited), tmp_path)


def test_images_that_are_in_both_splits_are_told(tmp_path: Path) -> None:
    """Whether by links, copies or rows of a table."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for name in ("ant", "bee"):
            folder = tmp_path / "img" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    config = DatasetConfig(name="own", source="image_folder", path=str(tmp_path / "img"))
    said: list[str] = []
    prepare(config, tmp_path / "data", say=said.append)
    assert said == []
    shutil.copy(tmp_path / "img/train/ant/2.png", tmp_path / "img/test/bee/1.png")
    prepare(config, tmp_path / "data", say=said.append)
    assert said == ["warning: 1 of 6 test images found among the training images, pixel by pixel"]


def test_images_held_out_that_are_test_images_are_told(tmp_path: Path) -> None:
    """What is chosen by them is then chosen by test images."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (2, 4, 5, 6, 3), dtype=np.uint8)
    for split in ("train", "test"):  # the test split is the training split
        for name, images in zip(("ant", "bee"), pixels, strict=True):
            folder = tmp_path / "img" / split / name
            folder.mkdir(parents=True)
            for index, image in enumerate(images):
                Image.fromarray(image).save(folder / f"{index}.png")
    raw = {"name": "own", "source": "image_folder", "path": str(tmp_path / "img"),
           "validation_fraction": 0.25}  # fmt: skip
    said: list[str] = []
    prepare(DatasetConfig.model_validate(raw), tmp_path / "data", say=said.append)
    assert said == [
        f"warning: {told}, pixel by pixel"
        for told in (
            "2 of 8 test images found among the validation images",
            "6 of 8 test images found among the training images",
        )
    ]
