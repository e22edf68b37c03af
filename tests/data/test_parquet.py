import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from smallbatch.data import parquet
from smallbatch.data.parquet import open_parquet
from smallbatch.data.split import Source
from smallbatch.errors import UserError

Write = Callable[..., Path]


def open_default(folder: Path) -> Source:
    return open_parquet(folder, "img", "label", None)


def test_rows_count_through_all_shards_and_row_groups(shards: Path) -> None:
    source = open_default(shards)
    assert source.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 1] * 10
    assert source.test.labels.tolist() == [0, 1] * 3
    rows = np.array([0, 4, 5, 11, 12, 19])
    seeds = [100, 104, 105, 111, 200, 207]
    images = source.train.read(rows)
    for seed, pixels in zip(seeds, images, strict=True):
        expected = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("name", ["validation", "val"])
def test_validation_stands_in_for_a_missing_test(shards: Path, name: str) -> None:
    (shards / "test-00000-of-00001.parquet").rename(shards / f"{name}-00000-of-00001.parquet")
    assert len(open_default(shards).test.labels) == 6


@pytest.mark.parametrize("image_type", [pa.binary(), pa.large_binary()])
def test_plain_binary_column_and_other_column_names(
    tmp_path: Path, png: bytes, image_type: pa.DataType
) -> None:
    table = pa.table({"picture": pa.array([png] * 4, type=image_type), "kind": [0, 1, 0, 1]})
    for split in ("train", "test"):
        pq.write_table(table, tmp_path / f"{split}-0.parquet")
    source = open_parquet(tmp_path, "picture", "kind", None)
    assert source.classes == ("0", "1")
    assert source.test.read(np.arange(4)).shape == (4, 3, 4, 4)


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    path = tmp_path / "one.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("label_type", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()])
def test_any_integer_type_of_label(
    shards: Path, write_shard: Write, png: bytes, label_type: pa.DataType
) -> None:
    path = shards / "test-00000-of-00001.parquet"
    write_shard(path, [png] * 3, [1, 0, 1], ["cat", "dog"], label_type=label_type)
    labels = open_default(shards).test.labels
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "label_type",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
)
def test_labels_of_text_are_the_classes_whatever_their_order_in_each_shard(
    tmp_path: Path, write_shard: Write, png: bytes, label_type: pa.DataType
) -> None:
    for name, labels in (
        ("train-0", ["dog", "cat", "cafe\u0301"]),
        ("train-1", ["eel", "eel"]),
        ("test-0", ["caf\u00e9", "eel", "dog", "cat"]),
    ):
        path = tmp_path / "s" / f"{name}.parquet"
        write_shard(path, [png] * len(labels), labels, label_type=label_type)
    source = open_default(tmp_path / "s")
    assert source.classes == ("caf\u00e9", "cat", "dog", "eel")
    assert source.train.labels.tolist() == [2, 1, 0, 3, 3]
    assert source.test.labels.tolist() == [0, 3, 2, 1]


def test_a_missing_label_of_text_names_its_row(
    tmp_path: Path, write_shard: Write, png: bytes
) -> None:
    hidden = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["cat", None]))
    for labels in (["cat", None], hidden):
        path = write_shard(tmp_path / "one.parquet", [png] * 2, labels, label_type=pa.string())
        with pytest.raises(UserError, match=r"row 1: found no label in 'label'"):
            open_parquet(path, "img", "label", None, test_fraction=0.5)


def test_image_by_path_inside_the_folder(shards: Path, write_shard: Write, png: bytes) -> None:
    (shards / "files").mkdir()
    (shards / "files/a.png").write_bytes(png)
    rows = [{"bytes": png, "path": "../ignored"}, {"bytes": None, "path": "files/a.png"}]
    write_shard(shards / "test-00000-of-00001.parquet", rows, [0, 1], ["cat", "dog"])
    images = open_default(shards).test.read(np.arange(2))
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link/secret.png"])
def test_paths_must_not_lead_outside(
    shards: Path, write_shard: Write, png: bytes, name: str
) -> None:
    (shards.parent / "secret.png").write_bytes(png)
    (shards / "link").symlink_to(shards.parent)
    rows = [{"bytes": None, "path": name}] * 2
    path = write_shard(shards / "test-00000-of-00001.parquet", rows, [0, 1], ["cat", "dog"])
    with pytest.raises(UserError, match=rf"{path.name}, row 0: path .* leads outside"):
        open_default(shards).test.read(np.arange(2))


@pytest.mark.parametrize("row", [None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}])
def test_row_without_image(shards: Path, write_shard: Write, png: bytes, row: Any) -> None:
    path = shards / "test-00000-of-00001.parquet"
    write_shard(path, [png, png, row], [0, 1, 1], ["cat", "dog"])
    with pytest.raises(UserError, match=rf"{path.name}, row 2: found no image"):
        open_default(shards).test.read(np.arange(3))


def test_damaged_image_names_file_and_row(shards: Path, write_shard: Write, png: bytes) -> None:
    path = shards / "train-00001-of-00002.parquet"
    images = [png] * 7 + [png[:40]]
    write_shard(path, images, [0, 1] * 4, ["cat", "dog"], row_group_size=3)
    source = open_default(shards)
    assert source.train.read(np.array([18])).shape == (1, 3, 4, 4)
    with pytest.raises(UserError, match=rf"{path.name}, row 7: "):
        source.train.read(np.array([3, 19]))


@pytest.mark.parametrize(
    ("labels", "label_type", "message"),
    [
        ([0, 1, 2], None, r"row 2: found label 2; allowed: 0 to 1"),
        ([0, -1, 1], None, r"row 1: found label -1; allowed: 0 to 1"),
        ([0, None, 1], None, r"row 1: found no label in 'label'"),
        ([0.0, 1.0, 1.5], pa.float64(), r"column 'label' has type double; allowed: integers"),
        (["a", "b", "c"], pa.string(), r"column 'label' has type string; allowed: integers"),
        ([True, False, True], pa.bool_(), r"column 'label' has type bool; allowed: integers"),
        ([0, 1, 2**64 - 1], pa.uint64(), r"18446744073709551615"),
    ],
)
def test_bad_labels_name_file_and_row(
    shards: Path, write_shard: Write, png: bytes, labels: Any, label_type: Any, message: str
) -> None:
    path = shards / "test-00000-of-00001.parquet"
    write_shard(path, [png] * 3, labels, ["cat", "dog"], label_type=label_type)
    with pytest.raises(UserError, match=rf"{path.name}.*{message}"):
        open_default(shards)


@pytest.mark.parametrize("labels", [[0, 2], [1, 2], [0, 2**62]])
def test_labels_without_names_must_have_no_gap(
    tmp_path: Path, write_shard: Write, png: bytes, labels: list[int]
) -> None:
    for split in ("train", "test"):
        write_shard(tmp_path / "s" / f"{split}-0.parquet", [png] * 2, labels)
    with pytest.raises(UserError, match=r"column 'label' has no label [01] but has"):
        open_default(tmp_path / "s")


@pytest.mark.parametrize(
    "metadata", ["not json", "[]", '{"info": {"features": []}}', '{"info": {"features": {}}}']
)
def test_metadata_about_something_else_is_ignored(shards: Path, png: bytes, metadata: str) -> None:
    table = pa.table({"img": [png, png], "label": [0, 1]}).replace_schema_metadata(
        {"huggingface": metadata}
    )
    folder = shards.parent / "plain"
    folder.mkdir()
    for split in ("train", "test"):
        pq.write_table(table, folder / f"{split}-0.parquet")
    assert open_default(folder).classes == ("0", "1")


def test_shards_must_agree_on_class_names(shards: Path, write_shard: Write, png: bytes) -> None:
    path = write_shard(shards / "test-00000-of-00001.parquet", [png] * 2, [0, 1], ["dog", "cat"])
    with pytest.raises(UserError, match=rf"{path.name}: its schema's class names differ"):
        open_default(shards)


def test_missing_shard(shards: Path) -> None:
    (shards / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"says 2 shards, found 1"):
        open_default(shards)


def test_missing_split_and_folder(shards: Path) -> None:
    (shards / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shards: found train; allowed: a test split called test"):
        open_default(shards)
    with pytest.raises(UserError, match=r"dataset\.path"):
        open_default(shards / "absent")


@pytest.mark.parametrize(("key", "columns"), [("image", ("x", "label")), ("label", ("img", "x"))])
def test_missing_column(shards: Path, key: str, columns: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=rf"no column 'x'; allowed for dataset.{key}_column: img"):
        open_parquet(shards, *columns, None)


def test_column_of_another_type(shards: Path) -> None:
    with pytest.raises(UserError, match=r"column 'label' has type int64; allowed: binary"):
        open_parquet(shards, "label", "label", None)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.99])
def test_truncated_file(shards: Path, keep: float) -> None:
    path = shards / "train-00001-of-00002.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=rf"{path.name}: not a readable Parquet file"):
        open_default(shards)


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_corrupted_file_reads_or_raises_user_error(shards: Path, data: st.DataObject) -> None:
    path = shards / "train-00001-of-00002.parquet"
    intact = path.with_suffix(".intact")
    if not intact.exists():
        shutil.copy(path, intact)
    content = bytearray(intact.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    message = ""
    try:
        source = open_default(shards)
        source.train.read(np.arange(len(source.train.labels)))
    except UserError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    "layout",
    [
        "{}.parquet", "{}/0000.parquet", "default/{}/0000.parquet", "plain_text/{}/0000.parquet",
        "data/{}-00000-of-00001.parquet", "{}-00000-of-00001-0123456789abcdef.parquet",
        "{}_0.parquet", "{}0000.parquet",
    ],
)  # fmt: skip
def test_layouts_of_the_hub(tmp_path: Path, write_shard: Write, png: bytes, layout: str) -> None:
    for split, count in (("train", 4), ("test", 2)):
        write_shard(tmp_path / layout.format(split), [png] * count, [0, 1] * (count // 2))
    source = open_default(tmp_path)
    assert (len(source.train.labels), len(source.test.labels)) == (4, 2)
    assert source.test.read(np.arange(2)).shape == (2, 3, 4, 4)
    assert source.note is None


def test_shards_in_a_folder_are_read_in_order(
    tmp_path: Path, write_shard: Write, png: bytes
) -> None:
    for number, label in enumerate((0, 1, 0)):
        write_shard(tmp_path / f"train/{number:04}.parquet", [png], [label])
    write_shard(tmp_path / "test/0000.parquet", [png] * 2, [0, 1])
    assert open_default(tmp_path).train.labels.tolist() == [0, 1, 0]


def test_one_of_several_data_sets_must_be_named(
    tmp_path: Path, write_shard: Write, png: bytes
) -> None:
    for name in ("en", "fr"):
        for split in ("train", "test"):
            write_shard(tmp_path / name / split / "0.parquet", [png] * 2, [0, 1])
    with pytest.raises(
        UserError, match=r"dataset\.path: found .* 2 data sets; allowed: one of .*/en"
    ):
        open_default(tmp_path)
    assert len(open_default(tmp_path / "fr").train.labels) == 2


def test_withheld_labels_have_a_way_out(shards: Path, write_shard: Write, png: bytes) -> None:
    names = ["cat", "dog"]
    write_shard(shards / "test-00000-of-00001.parquet", [png] * 3, [-1] * 3, names)
    write_shard(shards / "validation-00000-of-00001.parquet", [png] * 2, [0, 1], names)
    line = r"test-.* row 0: found label -1; allowed: 0 to 1, or dataset\.test_split: validation"
    with pytest.raises(UserError, match=line):
        open_default(shards)
    source = open_parquet(shards, "img", "label", None, test_split="validation")
    assert len(source.test.labels) == 2
    assert source.note == (
        f"{shards}: runs train on train and are tested on validation; test not used"
    )


STRUCT_OF_VIEWS = pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())])


@pytest.mark.parametrize(
    "image_type",
    [
        pa.binary_view(), STRUCT_OF_VIEWS,
        pa.struct([("bytes", pa.large_binary()), ("path", pa.string_view())]),
    ],
    ids=["plain", "struct", "path"],
)  # fmt: skip
def test_views_are_read_as_binary_is(
    tmp_path: Path, write_shard: Write, png: bytes, image_type: pa.DataType
) -> None:
    row = {"bytes": png, "path": None} if pa.types.is_struct(image_type) else png
    for split in ("train", "test"):
        path = tmp_path / f"{split}-0.parquet"
        write_shard(path, [row] * 4, [0, 1, 0, 1], image_type=image_type)
    if pa.types.is_struct(image_type):
        (tmp_path / "a.png").write_bytes(png)
        rows = [row, {"bytes": None, "path": "a.png"}]
        write_shard(tmp_path / "test-0.parquet", rows, [0, 1], image_type=image_type)
    source = open_default(tmp_path)
    expected = np.arange(48, dtype=np.uint8).reshape(4, 4, 3).transpose(2, 0, 1)
    for images in (source.train.read(np.array([1, 3])), source.test.read(np.arange(2))):
        np.testing.assert_array_equal(images, np.stack([expected] * 2))


def test_class_names_are_one_in_either_unicode_form(
    shards: Path, write_shard: Write, png: bytes
) -> None:
    for split, names in (
        ("train-0-of-1", ["caf\u00e9", "x"]),
        ("test-0-of-1", ["cafe\u0301", "x"]),
    ):
        write_shard(shards.parent / "u" / f"{split}.parquet", [png] * 2, [0, 1], names)
    assert open_default(shards.parent / "u").classes == ("caf\u00e9", "x")


@pytest.mark.parametrize("what", ["shard", "image"])
def test_a_fifo_is_refused_at_once(shards: Path, write_shard: Write, png: bytes, what: str) -> None:
    path = shards / "test-00000-of-00001.parquet"
    if what == "image":
        os.mkfifo(shards / "x.png")
        rows = [png, {"bytes": None, "path": "x.png"}]
        write_shard(path, rows, [0, 1], ["cat", "dog"])
    else:
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(UserError, match="found a FIFO"):
        open_default(shards).test.read(np.arange(2))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("train.parquet", "train-old.parquet"),
        ("train.parquet", "train/0000.parquet"),
        ("train.parquet", "train_0.parquet"),
        ("data/train-00000-of-00001.parquet", "data/train0.parquet"),
    ],
)
def test_a_split_in_two_layouts_is_refused(
    tmp_path: Path, write_shard: Write, png: bytes, one: str, other: str
) -> None:
    root = tmp_path / "train"  # as a split may be called, too
    for name in (one, "data/test.parquet" if one.startswith("data") else "test.parquet"):
        write_shard(root / name, [png] * 2, [0, 1])
    assert len(open_default(root).train.labels) == 2
    write_shard(root / other, [png] * 2, [0, 1])
    with pytest.raises(UserError, match="the split train in 2 layouts") as caught:
        open_default(root)
    assert one in str(caught.value)
    assert other in str(caught.value)


def test_a_split_that_is_not_used_may_have_two_layouts(
    tmp_path: Path, write_shard: Write, png: bytes
) -> None:
    for name in ("train", "test", "extra", "extra-old"):
        write_shard(tmp_path / f"{name}.parquet", [png] * 2, [0, 1])
    assert len(open_default(tmp_path).train.labels) == 2


@pytest.mark.parametrize(
    ("names", "right"),
    [
        ("train_00000_of_00002", False), ("train_00000_of_00002 train_00001_of_00002", True),
        ("train-0-of-2 train-2-of-2", False), ("train-0-of-2 train-1-of-3", False),
        ("train-1-of-2 train-2-of-2", True), ("train-0-of-2 train-1-of-2", True),
        ("train/0-of-2", False), ("train0-of-2", False), ("train/0_OF_2 train/1_OF_2", True),
        ("train/0000 train/0002", False), ("train/0000 train/0001", True),
        ("train/1 train/2", True), ("train/2 train/3", False), ("train/0002", False),
        ("train0000 train0002", False), ("train0000 train0001", True), ("train0002", False),
        ("train_0 train_2", False), ("train-0 train-2", False), ("train-0 train-old", False),
        ("train/0000 train/0000 (1)", False), ("train/0000 train/Copy of 0000", False),
        ("train/images train/images - Copy", False), ("train/0000 train/part2/0001", False),
        ("train/part-00000-ab.snappy train/part-00001-ab.snappy", True),
        ("train/mnist10-0 train/mnist10-1", True), ("train/mnist10-0 train/mnist10-2", False),
        ("train/mnist784", True), ("train2017", True), ("train-2020 train-2021", True),
        ("train-00000-of-00002-ab train-00001-of-00002-7", True), ("default/train/0003", False),
        (" ".join(f"train-{number}" for number in range(11)), True),
    ],
)  # fmt: skip
def test_a_split_whose_names_tell_of_missing_or_doubled_shards_is_refused(
    tmp_path: Path, write_shard: Write, png: bytes, names: str, right: bool
) -> None:
    paths = re.split(r" (?=train)", names)
    test = "default/test" if names.startswith("default") else "test"
    for name in (*paths, test):
        write_shard(tmp_path / f"{name}.parquet", [png] * 2, [0, 1])
    if right:
        assert len(open_default(tmp_path).train.labels) == 2 * len(paths)
    else:
        line = rf"^{re.escape(str(tmp_path))}.*: .*allowed: (every shard|one file|shards in)"
        with pytest.raises(UserError, match=line):
            open_default(tmp_path)


def test_a_suffix_in_capitals_is_one(tmp_path: Path, write_shard: Write, png: bytes) -> None:
    for name in ("train-1.parquet", "train-2.PARQUET", "test/0000.Parquet"):
        write_shard(tmp_path / name, [png] * 2, [0, 1])
    source = open_default(tmp_path)
    assert (len(source.train.labels), len(source.test.labels)) == (4, 2)


@pytest.mark.parametrize(
    "name", ["data/default/train-0.parquet", "train (1).parquet", "data/a/b/0.PARQUET"]
)
def test_shards_that_are_not_used_are_named(
    tmp_path: Path, write_shard: Write, png: bytes, name: str
) -> None:
    for path in ("train.parquet", "test.parquet", name):
        write_shard(tmp_path / path, [png] * 2, [0, 1])
    source = open_default(tmp_path)
    assert len(source.train.labels) == 2
    assert source.note == f"{tmp_path}: {name} not used, being of no split"


@pytest.mark.parametrize("plain", [True, False])
def test_a_row_group_beyond_the_memory_is_refused_before_it_is_read(
    shards: Path, write_shard: Write, png: bytes, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    layout = {"image_type": pa.binary()} if plain else {}
    contents = [png, png + bytes(2**24)]
    write_shard(shards / "test.parquet", contents, [0, 1], ["cat", "dog"], **layout)
    (shards / "test-00000-of-00001.parquet").unlink()
    test = open_default(shards).test
    assert (shards / "test.parquet").stat().st_size < 2**20
    before = len(test.read(np.arange(2)))
    monkeypatch.setattr(parquet, "free_memory", lambda: 2**24)
    line = r"test\.parquet: the images of rows 0 to 1, one row group, need 0\.02 GiB of memory"
    with pytest.raises(UserError, match=line):
        test.read(np.arange(2))
    assert before == 2


def test_labels_beyond_the_memory_are_refused_before_they_are_read(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is done with them, of all shards: 26 labels."""
    lines = {
        64 * 12 - 1: r"train-00000-of-00002\.parquet: 12 labels need 0\.00 GiB",
        56 * 26 - 1: r"shards: 26 labels need 0\.00 GiB .* allowed: fewer rows",
    }
    for free, line in lines.items():
        monkeypatch.setattr(parquet, "free_memory", lambda free=free: free)
        with pytest.raises(UserError, match=line):
            open_default(shards)
    monkeypatch.setattr(parquet, "free_memory", lambda: 56 * 26)
    open_default(shards)


def test_memory_that_runs_out_while_reading_is_not_damage(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = open_default(shards).train

    def no_memory(*_: object, **__: object) -> object:
        raise pa.ArrowMemoryError("malloc of size 268436096 failed")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", no_memory)
    line = r"parquet: not enough memory to read it \(malloc of size 268436096 failed\)$"
    with pytest.raises(UserError, match=line):
        train.read(np.arange(2))


def test_an_image_in_many_rows_is_in_memory_for_a_few(shards: Path, write_shard: Write) -> None:
    path = write_shard(shards / "much.parquet", [b"x" * 2**16] * 4000, [0] * 4000)
    assert path.stat().st_size < 2**20  # a dictionary has it once
    before = pa.default_memory_pool().bytes_allocated()
    most = 0
    for encoded in parquet.encoded_in(path, np.arange(4000), "img"):
        assert encoded.content == b"x" * 2**16
        most = max(most, pa.default_memory_pool().bytes_allocated() - before)
    assert most < 2**25  # of 2**28
