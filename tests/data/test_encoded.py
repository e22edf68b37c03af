"""Reading data sets whose images are kept encoded."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from smallbatch.config.dataset import DatasetConfig
from smallbatch.data import encoded
from smallbatch.data.encoded import EncodedDataset, load_any, load_encoded
from smallbatch.data.prepare import prepare
from smallbatch.data.prepared import Dataset, load_prepared
from smallbatch.errors import UserError
from tests.data.conftest import encode, noise


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """24 training, 8 validation and 6 test images of noise in several shards."""
    monkeypatch.setattr("smallbatch.data.prepare_encoded.SHARD", 20_000)
    for split, count in (("train", 16), ("test", 3)):
        for label, name in enumerate(("ant", "bee")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for row in range(count):
                pixels = noise(1000 * label + 100 * (split == "test") + row, 30 + row, 40, 3)
                (folder / f"{row}.JPEG").write_bytes(encode(pixels, "JPEG"))
    config = DatasetConfig(
        name="own", source="image_folder", path=str(tmp_path / "images"), image_size=28,
        storage="encoded", validation_fraction=0.25,
    )  # fmt: skip
    prepare(config, tmp_path / "data")
    return tmp_path / "data/prepared/own"


def test_every_image_is_read_from_where_it_lies(prepared: Path) -> None:
    data = load_encoded(prepared)
    assert data.validation is not None
    assert data.meta.counts == {"train": 24, "validation": 8, "test": 6}
    splits = (data.train, data.test, data.validation)
    assert [len(split) for split in splits] == [24, 6, 8]
    assert len(data.train.shards) > 3
    by_bytes: dict[bytes, tuple[str, int]] = {}
    for path in prepared.glob("*.parquet"):
        table = pq.read_table(path)
        rows = zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
        by_bytes |= {image: (path.name, label) for image, label in rows}
    assert len(by_bytes) == 38
    found: list[bytes] = []
    for split in splits:
        types = (np.int64, np.int32, np.int64, np.int32, np.uint8)
        fields = (split.labels, split.shard, split.offset, split.length, split.digest)
        assert tuple(field.dtype for field in fields) == types
        for row in range(len(split)):
            image = split.read(row)
            assert by_bytes[image] == (split.shards[split.shard[row]], split.labels[row])
            found.append(image)
    assert sorted(found) == sorted(by_bytes)
    assert isinstance(load_any(prepared), EncodedDataset)


def test_a_split_is_pickled_without_its_open_files(prepared: Path) -> None:
    split = load_encoded(prepared).train
    expected = [split.read(row) for row in range(24)]
    again = pickle.loads(pickle.dumps(split))
    assert again._open._files == {}
    assert [again.read(row) for row in range(24)] == expected
    np.testing.assert_array_equal(again.labels, split.labels)


def files() -> int:
    """How many are open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("most", [0, 2, 512])
def test_shards_are_opened_once_and_closed_in_the_end(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(encoded, "_MOST_OPEN", most)

    split = load_encoded(prepared).train
    before = files()
    for _ in range(3):
        for row in range(24):
            split.read(row)
    assert files() - before == min(most, len(set(split.shard.tolist())))
    del split
    assert files() == before


@pytest.mark.parametrize(("limit", "kept"), [(None, 3), (12, 3), (8, 2), (0, 0)])
def test_all_splits_share_a_part_of_what_the_process_may_open(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None, kept: int
) -> None:
    infinity = resource.RLIM_INFINITY
    soft = infinity if limit is None else limit
    monkeypatch.setattr(encoded.resource, "getrlimit", lambda _: (soft, infinity))
    monkeypatch.setattr(encoded, "_MOST_OPEN", 3)
    data = load_encoded(prepared)
    assert data.validation is not None
    before = files()
    for split in (data.train, data.test, data.validation):
        for row in range(len(split)):
            split.read(row)
    assert len(data.train.shards) > 3
    assert files() - before == kept


FEW = """
import os, resource, sys
from pathlib import Path
from smallbatch.data import encoded
data = encoded.load_encoded(Path(sys.argv[1]))
encoded._most_open = lambda: 512
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, used + 1))
for _ in range(2):
    for split in (data.train, data.test, data.validation):
        for row in range(len(split)):
            split.read(row)
"""


def test_where_no_more_can_be_opened_the_kept_ones_are_closed(prepared: Path) -> None:
    assert len(list(prepared.glob("*.parquet"))) > 3
    done = subprocess.run(
        [sys.executable, "-c", FEW, str(prepared)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_threads_read_at_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = load_encoded(prepared).train
    expected = [split.read(row) for row in range(24)]
    split = load_encoded(prepared).train
    barrier, opening = threading.Barrier(8), os.open

    def slowly(*args: object, **options: object) -> int:
        descriptor = opening(*args, **options)  # pyright: ignore[reportArgumentType]
        barrier.wait(timeout=30)  # all have opened the shard before one keeps it
        return descriptor

    before = files()
    with ThreadPoolExecutor(8) as pool:
        monkeypatch.setattr(encoded.os, "open", slowly)
        found = list(pool.map(split.read, [0] * 8))
    monkeypatch.undo()
    assert found == [expected[0]] * 8
    assert files() - before == 1
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(split.read, [*range(24)] * 20)) == expected * 20


def test_a_damaged_image_is_told_when_it_is_read(prepared: Path) -> None:
    split = load_encoded(prepared).test
    path = prepared / split.shards[split.shard[4]]
    content = bytearray(path.read_bytes())
    content[int(split.offset[4]) + 70] ^= 1
    path.write_bytes(content)
    split = load_encoded(prepared).test  # whose index is intact
    split.read(3)
    with pytest.raises(UserError, match=rf"^{path}, image 4: damaged; remove this file and"):
        split.read(4)
    path.unlink()
    split = pickle.loads(pickle.dumps(split))
    with pytest.raises(UserError, match=rf"^{path}: cannot be read \(No such file"):
        split.read(4)


def change_meta(folder: Path, key: str, value: object) -> None:
    path = folder / "meta.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))


def without(folder: Path, key: str) -> None:
    path = folder / "meta.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no index": (lambda f: (f / "index.npy").unlink(), r"index\.npy: No such file"),
    "index": (lambda f: flip(f / "index.npy", -3), r"index\.npy: does not match meta\.json"),
    "header": (lambda f: flip(f / "index.npy", 30), r"index\.npy: "),
    "cut short": (
        lambda f: (f / "index.npy").write_bytes((f / "index.npy").read_bytes()[:-9]),
        r"index\.npy: damaged",
    ),
    "another array": (lambda f: np.save(f / "index.npy", np.ones(3)), r"index\.npy: damaged \(fou"),
    "empty": (lambda f: (f / "index.npy").write_bytes(b""), r"index\.npy: damaged"),
    "mean": (lambda f: change_meta(f, "mean", [0.1, 0.2, 0.3]), "does not match meta"),
    "counts": (
        lambda f: change_meta(f, "counts", {"train": 25, "validation": 7, "test": 6}),
        "does not match meta",
    ),
    "no shards": (lambda f: without(f, "shards"), "does not match meta"),
    "no digest": (lambda f: without(f, "digest"), "does not match meta"),
    "no meta": (lambda f: (f / "meta.json").unlink(), "found no prepared data set"),
    "no shard": (lambda f: (f / "train-00001.parquet").unlink(), r"train-00001.parquet: No such"),
    "shard cut short": (
        lambda f: os.truncate(f / "test-00000.parquet", 4000),
        r"test-00000\.parquet: found 4000 bytes, meta\.json says \d+; prepare",
    ),
    "a pipe": (
        lambda f: [(f / "test-00000.parquet").unlink(), os.mkfifo(f / "test-00000.parquet")],
        r"test-00000\.parquet: found a FIFO",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_told_before_an_image_is_read(prepared: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(prepared)
    with pytest.raises(UserError, match=message) as caught:
        load_encoded(prepared)
    assert "\n" not in str(caught.value)


def test_pixels_are_not_taken_for_encoded_images_nor_the_other_way(
    prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"own: found images kept encoded, .*storage: pixels"):
        load_prepared(prepared)
    prepare(DatasetConfig(name="digits", source="digits", subset=20), tmp_path)
    with pytest.raises(UserError, match="digits: found pixels; allowed: images kept encoded"):
        load_encoded(tmp_path / "prepared/digits")
    assert isinstance(load_any(tmp_path / "prepared/digits"), Dataset)
