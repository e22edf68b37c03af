"""The image and the label column of a Parquet file, found from its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smallbatch.data.columns import columns_of, spread
from smallbatch.data.sizes import LOOKED_AT
from smallbatch.errors import UserError
from tests.data.conftest import IMAGE_TYPE

TYPES: dict[str, Any] = {
    "struct": IMAGE_TYPE, "binary": pa.binary(), "view": pa.binary_view(), "int": pa.int64(),
    "small": pa.uint8(), "text": pa.string(), "float": pa.float64(), "bool": pa.bool_(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()), "other": pa.struct([("x", pa.int8())]),
}  # fmt: skip


def write(path: Path, columns: dict[str, str], *named: str) -> Path:
    """An empty file with columns of these types, some with class names in the schema."""
    schema = pa.schema([(name, TYPES[kind]) for name, kind in columns.items()])
    features = {name: {"_type": "ClassLabel", "names": ["a", "b"]} for name in named}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(schema.with_metadata(metadata).empty_table(), path)
    return path


@pytest.mark.parametrize(
    ("columns", "named", "expected"),
    [
        ({"img": "struct", "label": "int"}, (), ("img", "label")),
        ({"kind": "small", "photo": "binary"}, (), ("photo", "kind")),
        ({"photo": "view", "species": "text", "weight": "float"}, (), ("photo", "species")),
        ({"photo": "struct", "species": "dictionary", "ok": "bool"}, (), ("photo", "species")),
        ({"photo": "struct", "kind": "text", "__index_level_0__": "int"}, (), ("photo", "kind")),
        # The only one with class names, and then the one that is called so.
        ({"image": "struct", "id": "int", "label": "int", "kind": "int"}, ("kind",),
         ("image", "kind")),
        ({"image": "struct", "id": "int", "label": "int", "file": "text"}, (), ("image", "label")),
        ({"image": "struct", "mask": "struct", "label": "int"}, (), ("image", "label")),
        ({"image": "struct", "label": "int", "kind": "int"}, ("label", "kind"), ("image", "label")),
    ],
)  # fmt: skip
def test_columns_by_type(
    tmp_path: Path, columns: dict[str, str], named: tuple[str, ...], expected: tuple[str, str]
) -> None:
    assert columns_of(write(tmp_path / "x.parquet", columns, *named)) == expected


@pytest.mark.parametrize(
    ("columns", "named", "said"),
    [
        ({"img": "struct", "fine": "int", "coarse": "int", "label": "int"}, ("fine", "coarse"),
         r"found fine, coarse, each of which may be dataset\.label_column; allowed: one"),
        ({"img": "struct", "a": "int", "b": "text"}, (), r"found a, b, each .*label_column"),
        ({"img": "struct", "image": "binary", "label": "int"}, (),
         r"found img, image, each .*dataset\.image_column; .* rename it to 'img'"),
        ({"label": "int", "x": "other"}, (), r"no column of images among label, x; .*: binary"),
        ({"img": "struct", "x": "float"}, (), r"no column of labels among img, x; .*or text"),
    ],
)  # fmt: skip
def test_what_stays_open_is_named(
    tmp_path: Path, columns: dict[str, str], named: tuple[str, ...], said: str
) -> None:
    path = write(tmp_path / "x.parquet", columns, *named)
    with pytest.raises(UserError, match=said) as caught:
        columns_of(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_images_are_spread_over_files_row_groups_and_rows(tmp_path: Path) -> None:
    for number, rows in enumerate((1000, 3000, 0)):
        content = [f"{number} {row}".encode() for row in range(rows)]
        table = pa.table({"img": pa.array(content, pa.binary())})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=250)
    found = [each.content for each in spread(sorted(tmp_path.iterdir()), "img")]
    assert len(found) == LOOKED_AT
    pairs = [tuple(map(int, bytes(each).split())) for each in found if isinstance(each, bytes)]
    assert pairs == sorted(pairs)
    assert [pairs[0], pairs[24], pairs[25], pairs[50]] == [(0, 0), (0, 249), (0, 500), (1, 0)]
    few = pa.table({"img": pa.array([b"x"] * 3, pa.binary())})
    pq.write_table(few, tmp_path / "few.parquet")
    assert len(list(spread([tmp_path / "few.parquet"], "img"))) == 3
