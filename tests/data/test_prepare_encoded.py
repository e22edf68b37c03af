"""Data sets whose images are kept encoded, from a source to `load_encoded`."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallbatch.config.dataset import DatasetConfig
from smallbatch.data import prepare as preparing
from smallbatch.data import scratch
from smallbatch.data.encoded import EncodedDataset, EncodedSplit, load_any, load_encoded
from smallbatch.data.expected import check_prepared, expected_meta
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import channel_statistics, load_prepared
from smallbatch.data.scratch import unfinished_folder
from smallbatch.errors import UserError
from tests.data.conftest import encode, noise


def images(folder: Path, train: int = 12, test: int = 4, side: int = 30) -> Path:
    """JPEGs of noise of two classes, each different, `folder/train/<class>/*` and so on."""
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(("ant", "bee")):
            (folder / split / name).mkdir(parents=True)
            for row in range(count):
                seed = 10_000 * label + 1000 * (split == "test") + row
                pixels = noise(seed, side + row % 5, side + 10, 3)
                (folder / split / name / f"{row:05}.JPEG").write_bytes(encode(pixels, "JPEG"))
    return folder


def own(folder: Path, **settings: Any) -> DatasetConfig:
    raw: dict[str, Any] = {"name": "own", "source": "image_folder", "path": str(folder),
                           "image_size": 28, "storage": "encoded"}  # fmt: skip
    return DatasetConfig.model_validate(raw | settings)


def prepared(config: DatasetConfig, root: Path) -> EncodedDataset:
    prepare(config, root)
    return load_encoded(root / "prepared/own")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(split: EncodedSplit) -> list[bytes]:
    return [split.read(row) for row in range(len(split))]


def test_the_images_of_a_folder(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    said: list[str] = []
    told: list[tuple[int, int]] = []
    meta = prepare(own(folder), tmp_path, say=said.append, told=lambda *it: told.append(it))
    data = load_encoded(tmp_path / "prepared/own")
    assert data.meta == meta
    assert meta.short_side == 32
    assert (meta.channels, meta.height, meta.width, meta.classes) == (3, 28, 28, ("ant", "bee"))
    assert meta.counts == {"train": 24, "validation": 0, "test": 8}
    assert data.validation is None
    for split, name, many in ((data.train, "train", 12), (data.test, "test", 4)):
        assert split.labels.tolist() == [0] * many + [1] * many
        files = sorted((folder / name).glob("*/*"))
        whole = [file.read_bytes() for file in files]
        small = [row % 5 <= 2 for _ in range(2) for row in range(many)]  # up to 32 pixels
        kept = [one == other for one, other in zip(read(split), whole, strict=True)]
        assert kept == small
    assert said == []
    assert told == [(done, 32) for done in range(1, 33)]
    assert names(tmp_path / "prepared") == [".own.made_from", "own"]


def test_statistics_are_those_of_the_stored_training_pixels(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    (folder / "train/ant/grey.png").write_bytes(encode(noise(5, 20, 30)))
    data = prepared(own(folder, validation_fraction=0.25), tmp_path)
    opened = (Image.open(io.BytesIO(it)).convert("RGB") for it in read(data.train))
    pixels = np.concatenate([np.asarray(image).reshape(-1, 3) for image in opened])
    mean, std = channel_statistics(np.ascontiguousarray(pixels.T)[np.newaxis, :, np.newaxis])
    assert data.meta.mean == pytest.approx(mean, rel=1e-14)
    assert data.meta.std == pytest.approx(std, rel=1e-14)
    floats = pixels / 255
    assert data.meta.mean == pytest.approx(floats.mean(axis=0), rel=1e-12)
    assert data.meta.std == pytest.approx(floats.std(axis=0), rel=1e-12)


def test_two_runs_give_the_same_bytes_wherever_they_are(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    first = prepared(own(folder, validation_fraction=0.25), tmp_path / "a")
    shutil.copytree(folder, tmp_path / "copy")
    second = prepared(own(tmp_path / "copy", validation_fraction=0.25), tmp_path / "b")
    assert first.meta == second.meta
    one, other = (content(tmp_path / it / "prepared/own") for it in "ab")
    different = {name for name in one if one[name] != other[name]}
    assert one.keys() == other.keys()
    assert different == {"meta.json"}  # whose settings name the folder


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda f: (f / "train/ant/00000.JPEG").rename(f / "train/ant/0.JPEG"), True),
        (lambda f: (f / "train/ant/00000.JPEG").rename(f / "train/ant/x.JPEG"), False),  # its row
        (lambda f: (f / "train/ant/00000.JPEG").write_bytes(encode(noise(1, 9, 9, 3), "JPEG")),
         False),
        (lambda f: (f / "test/bee").rename(f / "test/cow").parent.parent.joinpath("train/bee")
         .rename(f / "train/cow"), False),
    ],
)  # fmt: skip
def test_the_fingerprint_is_of_contents_labels_and_class_names(
    tmp_path: Path, change: Callable[[Path], object], same: bool
) -> None:
    folder = images(tmp_path / "images")
    first = prepare(own(folder), tmp_path).fingerprint
    assert prepare(own(folder, scale="small"), tmp_path).fingerprint == first
    for other in ({"image_size": 27}, {"short_side": 31}, {"short_side": 90}):
        assert prepare(own(folder, **other), tmp_path).fingerprint != first
    assert prepare(own(folder, short_side=32), tmp_path).fingerprint == first
    change(folder)
    assert (prepare(own(folder), tmp_path).fingerprint == first) is same


def test_a_validation_split_is_chosen_by_content(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", train=20)
    for name in ("x", "y", "z"):  # the same picture four times
        shutil.copy(folder / "train/ant/00003.JPEG", folder / f"train/ant/{name}.JPEG")
    config = own(folder, validation_fraction=0.25)
    data = prepared(config, tmp_path)
    assert data.validation is not None
    chosen = read(data.validation)
    counts = np.bincount(data.validation.labels)
    assert counts[1] in (4, 5)
    assert counts[0] in (5, 6, 7, 8, 9)
    assert not {*chosen} & {*read(data.train)}
    assert len(data.train) + len(data.validation) == 43
    for row, file in enumerate(sorted((folder / "train/bee").iterdir(), reverse=True)):
        file.rename(file.with_name(f"new{row}.JPEG"))  # in another order
    again = prepared(config, tmp_path)
    assert again.validation is not None
    assert {*read(again.validation)} == {*chosen}
    other = prepared(own(folder, validation_fraction=0.25, seed=1), tmp_path)
    assert other.validation is not None
    assert {*read(other.validation)} != {*chosen}


def test_one_picture_in_a_class_cannot_be_on_both_sides(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    for file in (folder / "train/bee").iterdir():
        shutil.copy(folder / "train/bee/00000.JPEG", file) if file.stem != "00000" else None
    with pytest.raises(UserError, match=r"dataset\.validation_fraction: .*class 'bee' out of the"):
        prepare(own(folder, validation_fraction=0.25), tmp_path)
    with pytest.raises(UserError, match=r"dataset\.validation_fraction: found 0\.01, .*'ant'"):
        prepare(own(folder, validation_fraction=0.01), tmp_path)


def test_images_in_several_splits_are_told(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    shutil.copy(folder / "train/ant/00002.JPEG", folder / "test/bee/x.JPEG")
    shutil.copy(folder / "train/ant/00003.JPEG", folder / "test/bee/y.JPEG")
    said: list[str] = []
    prepare(own(folder), tmp_path, say=said.append)
    assert said == ["warning: 2 of 10 test images found among the training images, byte by byte"]


def test_subsets_and_a_held_out_test_split(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    data = prepared(own(folder, subset=10, test_subset=4, validation_fraction=0.2), tmp_path)
    assert data.meta.counts == {"train": 8, "validation": 2, "test": 4}
    everything = {file.read_bytes() for file in (folder / "train").glob("*/*")}
    data = prepared(own(folder, subset=10, short_side=99), tmp_path)
    assert {*read(data.train)} < everything
    config = own(folder / "train", test_fraction=0.25, short_side=99)
    data = prepared(config, tmp_path)
    assert data.meta.counts == {"train": 18, "validation": 0, "test": 6}
    assert {*read(data.train), *read(data.test)} == everything


Write = Callable[..., Path]


def test_the_shards_of_the_hub(tmp_path: Path, write_shard: Write) -> None:
    contents = [encode(noise(row, 20 + row, 25, 3), "JPEG") for row in range(20)]
    (tmp_path / "hub/data").mkdir(parents=True)
    png = encode(noise(99, 9, 9))
    parts = {
        "train-00000-of-00002": contents[:9],
        "train-00001-of-00002": contents[9:15],
        "validation-00000-of-00001": [*contents[15:], png],
    }
    for name, rows in parts.items():
        labels = [row % 2 for row in range(len(rows))]
        write_shard(tmp_path / f"hub/data/{name}.parquet", rows, labels, ["a", "b"],
                    row_group_size=4)  # fmt: skip
    config = own(tmp_path / "hub", source="parquet", image_size=35)
    data = prepared(config, tmp_path)
    assert data.meta.short_side == 40
    assert read(data.train) == contents[:15]
    assert data.train.labels.tolist() == [row % 2 for row in [*range(9), *range(6)]]
    assert read(data.test)[:5] == contents[15:]
    assert Image.open(io.BytesIO(data.test.read(5))).mode == "L"
    # What was written is itself a source.
    again = own(tmp_path / "prepared/own", source="parquet", image_size=35, image_column="image")
    assert prepared(again, tmp_path / "again").meta.fingerprint == data.meta.fingerprint


def test_a_damaged_image_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    prepare(own(folder), tmp_path)
    before = content(tmp_path / "prepared/own")
    file = folder / "train/bee/00007.JPEG"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"^{file}: damaged image \(") as caught:
        prepare(own(folder), tmp_path)
    assert "\n" not in str(caught.value)
    assert content(tmp_path / "prepared/own") == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": None}, r"dataset\.image_size: missing; allowed with storage encoded"),
        ({"source": "cifar10"},
         r"dataset\.storage: found encoded with source cifar10; .* parquet or image_folder"),
        ({"source": "digits", "path": None}, r"dataset\.storage: found encoded with source digits"),
        ({"short_side": 27}, r"dataset\.short_side: found 27; allowed: image_size, 28, or more"),
        ({"storage": "pixels", "short_side": 32},
         r"dataset\.short_side: found 32 with storage pixels; allowed: with storage encoded"),
        ({"storage": "auto", "source": "digits", "path": None, "short_side": 32},
         r"dataset\.short_side: found 32 with source digits; allowed: with source parquet or"),
        ({"source": "parquet", "test_labels": "labels.txt"},
         r"dataset\.test_labels: found 'labels\.txt' with source parquet; allowed: .*image_folder"),
        ({"test_labels": "labels.txt", "test_fraction": 0.2},
         r"dataset\.test_labels: found 'labels\.txt' beside test_fraction; allowed: one of"),
        ({"subset": 1000}, r"dataset\.subset: found 1000; allowed: 2"),
    ],
)  # fmt: skip
def test_impossible_options_name_the_key_and_write_nothing(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    folder = images(tmp_path / "images")
    with pytest.raises(UserError, match=message):
        prepare(own(folder, **settings), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("settings", "encoded"),
    [
        ({}, True),
        ({"image_size": 27}, False),
        ({"subset": 23}, False),
        ({"test_subset": 7}, False),
        ({"image_size": None}, False),
        ({"storage": "pixels"}, False),
        ({"source": "digits", "path": None}, False),
    ],
)
def test_auto_keeps_many_images_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], encoded: bool
) -> None:
    monkeypatch.setattr(preparing, "MOST_PIXELS", 32 * 3 * 28 * 28 - 1)
    folder = images(tmp_path / "images")
    for file in folder.glob("*/*/*"):
        file.write_bytes(encode(noise(file.stat().st_ino, 30, 30, 3), "JPEG"))
    config = own(folder, **({"storage": "auto"} | settings))
    said: list[str] = []
    prepare(config, tmp_path, say=said.append)
    assert isinstance(load_any(tmp_path / "prepared/own"), EncodedDataset) is encoded
    line = "own: images are kept encoded, as their pixels would take more than 0 GiB"
    assert said == ([f"{line} (dataset.storage chooses)"] if encoded else [])


def test_the_limit_that_the_documents_state() -> None:
    assert preparing.MOST_PIXELS == 4 * 2**30


def test_prepared_data_are_what_the_settings_ask_for(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    config = own(folder)
    meta = prepare(config, tmp_path)
    directory = tmp_path / "prepared/own"
    assert expected_meta(config, directory) == (meta, True)
    check_prepared(config.model_copy(update={"max_megapixels": 9}), directory)
    for change in ({"short_side": 40}, {"storage": "pixels"}, {"storage": "auto"}, {"seed": 1},
                   {"image_size": 29}, {"test_labels": "x"}):  # fmt: skip
        with pytest.raises(UserError, match="own: prepared with other settings"):
            check_prepared(config.model_copy(update=change), directory)


def test_one_storage_replaces_the_other(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    prepare(own(folder), tmp_path)
    prepare(own(folder, storage="pixels"), tmp_path)
    directory = tmp_path / "prepared/own"
    assert {it.suffix for it in directory.iterdir()} == {".npy", ".json"}
    assert load_prepared(directory).meta.short_side is None
    assert "short_side" not in json.loads((directory / "meta.json").read_text())
    prepare(own(folder), tmp_path)
    assert sorted(content(directory)) == [
        "index.npy", "meta.json", "test-00000.parquet", "train-00000.parquet",
    ]  # fmt: skip
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"'notes\.txt' is none of the files to be replaced"):
        prepare(own(folder, seed=1), tmp_path)
    assert "notes.txt" in content(directory)


KEPT = "own: settings and files unchanged, so what is prepared is kept"


def test_what_is_prepared_already_is_left_alone(tmp_path: Path) -> None:
    folder = images(tmp_path / "images")
    shutil.copy(folder / "train/ant/00002.JPEG", folder / "test/bee/x.JPEG")
    config, said, told = own(folder, validation_fraction=0.25), list[str](), list[int]()

    def again(config: DatasetConfig) -> bool:
        """Whether it was kept."""
        directory = tmp_path / "data/prepared/own"
        before = {path: path.stat() for path in directory.glob("*")}
        said.clear()
        told.clear()
        meta = prepare(config, tmp_path / "data", say=said.append, told=lambda n, _: told.append(n))
        assert meta == load_encoded(directory).meta
        kept = before == {path: path.stat() for path in directory.glob("*")}
        assert kept == (told == []) == (KEPT in said)
        return kept

    assert [again(config), again(config), again(config)] == [False, True, True]
    assert said[1].startswith("warning: 1 of 9 test images found among the ")
    assert again(config.model_copy(update={"max_megapixels": 9}))
    for change in ({"short_side": 40}, {"seed": 1}, {"test_subset": 6}, {"scale": "small"}):
        other = config.model_copy(update=change)
        assert [again(other), again(other), again(config)] == [False, True, False]
    os.utime(folder / "train/ant/00001.JPEG", (1, 1))
    assert [again(config), again(config)] == [False, True]


def test_what_a_killed_process_left_goes_though_nothing_is_to_be_done(tmp_path: Path) -> None:
    config = own(images(tmp_path / "images"))
    prepared(config, tmp_path)
    left = tmp_path / "prepared/.own.0123456789abcdef.unfinished"
    (left / "new").mkdir(parents=True)
    prepared(config, tmp_path)
    assert not left.exists()
    left.mkdir()
    with scratch._unused(left):  # another process works in it
        prepared(config, tmp_path)
    assert left.exists()


@pytest.mark.parametrize("change", ["cut short", "missing", "index", "meta", "note", "library"])
def test_what_is_damaged_or_made_by_others_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    config = own(images(tmp_path / "images"))
    prepare(config, tmp_path)
    directory = tmp_path / "prepared/own"
    whole = content(directory)
    match change:
        case "cut short":
            os.truncate(directory / "test-00000.parquet", 4000)
        case "missing":
            (directory / "train-00000.parquet").unlink()
        case "index":
            (directory / "index.npy").write_bytes(whole["index.npy"][:-1] + b"?")
        case "meta":
            (directory / "meta.json").write_bytes(whole["meta.json"] + b" ")
        case "note":
            (tmp_path / "prepared/.own.made_from").unlink()
        case _:
            monkeypatch.setattr("smallbatch.data.decoder.metadata.version", lambda name: f"{name}2")
    said: list[str] = []
    prepare(config, tmp_path, say=said.append)
    assert said == []
    assert content(directory) == whole
    prepare(config, tmp_path, say=said.append)
    assert said == [KEPT]


CHILD = """
import os, signal, sys
from pathlib import Path
from smallbatch.config.dataset import DatasetConfig
from smallbatch.data import prepare_encoded
from smallbatch.data.prepare import prepare
prepare_encoded.SHARD = 30_000
stop = int(sys.argv[3])
def told(done, total):
    print(done, flush=True)
    if done == stop:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(DatasetConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), told=told)
"""


def child(config: DatasetConfig, root: Path, stop: int = -1) -> tuple[int, list[int]]:
    """Prepares in a process of its own, killed at an image; its status, and what it was told."""
    command = [sys.executable, "-c", CHILD, config.model_dump_json(), str(root), str(stop)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode, [int(line) for line in done.stdout.split()]


@pytest.mark.slow
def test_what_a_killed_process_has_finished_is_kept(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", train=100, test=30)
    config = own(folder, validation_fraction=0.2, short_side=33)
    assert child(config, tmp_path / "whole") == (0, [*range(1, 261)])
    whole = content(tmp_path / "whole/prepared/own")
    root, begun = tmp_path / "killed", list[int]()
    for stop in (3, 90, 91, 170, 230, 260):
        status, told = child(config, root, stop)
        assert status == -signal.SIGKILL
        assert not (root / "prepared/own").exists()
        begun.append(told[0])
    assert begun[:2] == [1, 1]
    assert begun == sorted(begun)
    assert begun[3] > 60  # of what was ready at 91, all but a shard is kept
    assert begun[5] > 200  # of the test split, too
    status, told = child(config, root)
    assert (status, told[-1:]) == (0, [260])
    assert content(root / "prepared/own") == whole
    assert names(root / "prepared") == [".own.made_from", "own"]
    assert len(whole) > 12


@pytest.mark.slow
@pytest.mark.parametrize("change", ["image", "time", "new image", "settings", "pixels"])
def test_another_work_begins_anew_and_clears_away_the_unfinished_one(
    tmp_path: Path, change: str
) -> None:
    folder = images(tmp_path / "images", train=40, test=5)
    config = own(folder)
    child(config, tmp_path, 80)
    file = folder / "train/ant/00000.JPEG"
    match change:
        case "image":
            file.write_bytes(encode(noise(77, 30, 30, 3), "JPEG"))
        case "time":
            os.utime(file, (1, 1))
        case "new image":
            shutil.copy(file, folder / "train/ant/x.JPEG")
        case "settings":
            config = own(folder, short_side=29)
        case _:
            config = own(folder, storage="pixels")
            prepare(config, tmp_path)
            assert [path.name for path in (tmp_path / "prepared").iterdir()] == ["own"]
            return
    status, told = child(config, tmp_path)
    assert (status, told[0]) == (0, 1)
    assert names(tmp_path / "prepared") == [".own.made_from", "own"]
    again = prepared(config, tmp_path / "again").meta.fingerprint
    assert load_encoded(tmp_path / "prepared/own").meta.fingerprint == again


@pytest.mark.slow
def test_other_labels_of_the_same_images_begin_anew(tmp_path: Path) -> None:
    folder = images(tmp_path / "images", train=4, test=40)
    for name in ("ant", "bee"):
        for file in (folder / "test" / name).iterdir():
            file.rename(folder / "test" / f"{name}{file.name}")
        (folder / "test" / name).rmdir()
    config = own(folder, test_labels="../labels.txt")  # not among the source's files
    (tmp_path / "labels.txt").write_text("ant\nbee\n" * 40)
    child(config, tmp_path, 80)
    (tmp_path / "labels.txt").write_text("bee\nant\n" * 40)
    assert child(config, tmp_path)[1][0] == 1
    test = load_encoded(tmp_path / "prepared/own").test
    assert test.labels.tolist() == [0] * 40 + [1] * 40
    second = sorted((folder / "test").iterdir())[1].read_bytes()
    assert second == test.read(0)  # the second by name is the first ant


def test_a_second_process_is_refused_and_nothing_of_the_first_is_lost(tmp_path: Path) -> None:
    with unfinished_folder(tmp_path, "own", "key") as folder:
        (folder / "work").write_text("mine")
        again = unfinished_folder(tmp_path, "own", "key")
        with pytest.raises(BlockingIOError, match="another process is at this"), again:
            pass
        with unfinished_folder(tmp_path, "own", "other"):  # does not clear away what is locked
            pass
        assert (folder / "work").read_text() == "mine"
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_folder_goes_on_where_it_was(tmp_path: Path) -> None:
    def fail(folder: Path, *files: str) -> None:
        for name in files:
            (folder / name).write_text("x")
        raise KeyboardInterrupt

    parent = tmp_path / "new/prepared"
    with pytest.raises(KeyboardInterrupt), unfinished_folder(parent, "own", "a") as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []  # nothing was done
    with pytest.raises(KeyboardInterrupt), unfinished_folder(parent, "own", "a") as folder:
        fail(folder, "done")
    with unfinished_folder(parent, "own-2", "b"):
        assert len(list(parent.iterdir())) == 2  # that of another name stays
    with unfinished_folder(parent, "own", "a") as folder:
        assert [path.name for path in folder.iterdir()] == ["done"]
    assert list(parent.iterdir()) == []


PEAK = """
import re, sys
from pathlib import Path
from smallbatch.config.dataset import DatasetConfig
from smallbatch.data import prepare_encoded
from smallbatch.data.prepare import prepare
prepare_encoded.SHARD = 2**20
prepare(DatasetConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("source", ["image_folder", "parquet"])
def test_memory_does_not_grow_with_the_number_of_images(
    tmp_path: Path, source: str, write_shard: Write
) -> None:
    def peak(many: int) -> int:
        root = tmp_path / str(many)
        contents = [encode(noise(row, 90, 120, 3), "JPEG") for row in range(64)]  # 14 KB each
        for split, count in (("train", many), ("test", 64)):
            rows = [contents[row % 64] for row in range(count)]
            if source == "parquet":
                labels = [0, 1] * (count // 2)
                path = root / f"images/{split}.parquet"
                write_shard(path, rows, labels, ["a", "b"], row_group_size=64)
                continue
            for label in "ab":
                (root / "images" / split / label).mkdir(parents=True)
            for row, it in enumerate(rows):
                (root / "images" / split / "ab"[row % 2] / f"{row}.jpg").write_bytes(it)
        config = own(root / "images", source=source, short_side=128)
        done = subprocess.run(
            [sys.executable, "-c", PEAK, config.model_dump_json(), str(root)],
            capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        return int(done.stdout) * 1024

    small, large = peak(512), peak(8192)  # 7 and 115 MB of images, 17 and 265 MB of pixels
    assert large - small < 30 * 2**20
