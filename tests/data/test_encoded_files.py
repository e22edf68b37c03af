"""Where the bytes of images lie in shards, and which shards are kept."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from smallbatch.data import encoded_files
from smallbatch.data.encode import Stored
from smallbatch.data.encoded import digest_of
from smallbatch.data.encoded_files import Shards, offsets
from smallbatch.data.parquet import open_parquet


def images(count: int, length: int, first: int = 0) -> Generator[Stored]:
    """Random bytes of different lengths, some the same."""
    for row in range(first, count):
        generator = np.random.default_rng(row % 7 if row % 5 == 0 else 100 + row)
        content = generator.bytes(int(generator.integers(1, length)))
        ones = np.full(3, row)
        yield Stored(content, digest_of(content), row, ones, ones**2)


def shards(folder: Path, size: int) -> Shards:
    for name in ("new", "notes"):
        (folder / name).mkdir(exist_ok=True)
    return Shards(folder / "new", folder / "notes", "train", ("ä", "b"), size)


@pytest.mark.parametrize(
    ("count", "length", "size", "group"),
    [(300, 9_000, 400_000, 90_000), (40, 3_000_000, 2**25, 2**24), (3000, 20, 10_000, 2**24),
     (1, 5, 1, 1), (50, 700, 1, 2**24)],
)  # fmt: skip
def test_the_bytes_lie_where_the_notes_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, length: int, size: int, group: int
) -> None:
    monkeypatch.setattr(encoded_files, "_ROW_GROUP", group)
    labels = np.arange(count) % 2
    told: list[int] = []
    work = shards(tmp_path, size)
    work.write(labels, lambda _: images(count, length), told.append)
    parts = list(work.parts())
    assert told == list(range(1, count + 1))
    expected = list(images(count, length))
    row = 0
    for number, part in enumerate(parts):
        path = tmp_path / f"new/train-{number:05}.parquet"
        whole, table = path.read_bytes(), pq.read_table(path)
        assert table["label"].to_pylist() == part["label"].tolist()
        contents = table["image"].to_pylist()
        for note, content in zip(part, contents, strict=True):
            start = note["offset"]
            assert whole[start : start + note["length"]] == content == expected[row].content
            assert note["digest"].tobytes() == expected[row].digest
            assert (note["pixels"], note["sums"].tolist()) == (row, [row] * 3)
            row += 1
        lengths = [len(content) for content in contents]
        assert sum(lengths[:-1]) < size  # not full before its last image
        assert number == len(parts) - 1 or sum(lengths) >= size
    assert row == count
    if count == 300:
        metadata = pq.read_metadata(tmp_path / "new/train-00000.parquet")
        assert metadata.num_row_groups > 1


def test_any_reader_of_the_hubs_layout_opens_shards(tmp_path: Path) -> None:
    labels = np.arange(30) % 2
    shards(tmp_path, 5_000).write(labels, lambda _: images(30, 900), lambda _: None)
    of_test = replace(shards(tmp_path, 10**6), split="test")
    of_test.write(labels, lambda _: images(30, 900), lambda _: None)
    source = open_parquet(tmp_path / "new", "image", "label", None)
    assert source.classes == ("ä", "b")
    assert source.train.labels.tolist() == labels.tolist()
    assert source.train.encoded is not None
    found = [it.content for it in source.train.encoded(np.arange(30))]
    assert found == [it.content for it in images(30, 900)]
    file = pq.ParquetFile(tmp_path / "new/train-00000.parquet", page_checksum_verification=True)
    assert file.read().num_rows > 1
    column = file.metadata.row_group(0).column(0)
    assert column.compression == "UNCOMPRESSED"
    assert set(column.encodings) <= {"PLAIN", "RLE"}  # the latter of levels, which it has not
    assert column.dictionary_page_offset is None
    assert column.statistics is None


def test_bytes_that_look_like_a_length_are_not_taken_for_one() -> None:
    one, two = b"\x03\x00\x00\x00abc", b"abc"
    page = b"header \x07\x00\x00\x00 of a page"
    region = page + len(one).to_bytes(4, "little") + one + page + b"\x03\x00\x00\x00abc"
    found = offsets(region, [one, two])
    assert found == [len(page) + 4, len(region) - 3]
    with pytest.raises(ValueError, match="not found"):
        offsets(region, [one, b"other"])


def write_until(folder: Path, stop: int) -> None:
    """Writes shards and fails at an image, as a process that is killed."""

    def failing(first: int) -> Generator[Stored]:
        with closing(images(60, 900, first)) as coming:
            for row, image in enumerate(coming, first):
                if row == stop:
                    raise KeyboardInterrupt
                yield image

    with pytest.raises(KeyboardInterrupt):
        shards(folder, 6_000).write(np.arange(60) % 2, failing, lambda _: None)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "damage", ["none", "no shard", "shard cut short", "shard of fewer", "no note", "bad note"]
)
def test_finished_shards_are_kept_and_the_rest_is_the_same(tmp_path: Path, damage: str) -> None:
    for name in ("whole", "ended"):
        (tmp_path / name).mkdir()
    labels = np.arange(60) % 2
    undisturbed = shards(tmp_path / "whole", 6_000)
    undisturbed.write(labels, lambda first: images(60, 900, first), lambda _: None)
    whole = list(undisturbed.parts())
    write_until(tmp_path / "ended", 50)
    work = shards(tmp_path / "ended", 6_000)
    finished = list(work.parts())
    assert 1 < len(finished) < len(whole)
    shard, note = work.folder / work.name(1), work.notes / "train-00001.npy"
    match damage:
        case "no shard":
            shard.unlink()
        case "shard cut short":
            shard.write_bytes(shard.read_bytes()[:-9])
        case "shard of fewer":  # of a process that was stopped while it wrote it again
            pq.write_table(pq.read_table(shard).slice(1), shard)
        case "no note":
            note.unlink()
        case "bad note":
            note.write_bytes(b"")
        case _:
            pass
    begun: list[int] = []

    def again(first: int) -> Generator[Stored]:
        begun.append(first)
        return images(60, 900, first)

    work.write(labels, again, lambda _: None)
    kept = finished if damage == "none" else finished[:1]
    assert begun == [sum(map(len, kept))]
    for one, other in zip(work.parts(), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    assert content(tmp_path / "ended/new") == content(tmp_path / "whole/new")
    assert content(tmp_path / "ended/notes") == content(tmp_path / "whole/notes")
