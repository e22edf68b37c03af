"""Builders of small data sets in the two file layouts."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encode(pixels: Any, image_format: str = "PNG", **options: Any) -> bytes:
    """Encodes pixels (H, W) or (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def write_shard() -> Callable[..., Path]:
    """Writes one Parquet shard in the Hugging Face layout."""

    def write(
        path: Path,
        contents: Iterable[Any],
        labels: Sequence[Any],
        names: Any = None,
        label_type: Any = None,
        image_type: Any = IMAGE_TYPE,
        **options: Any,
    ) -> Path:
        rows = [
            {"bytes": content, "path": None}
            if image_type == IMAGE_TYPE and isinstance(content, bytes)
            else content
            for content in contents
        ]
        table = pa.table(
            {
                "img": pa.array(rows, type=image_type),
                "label": pa.array(labels, type=label_type or pa.int64()),
            }
        )
        if names is not None:
            features = {"label": {"_type": "ClassLabel", "names": names}}
            text = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": text})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **options)
        return path

    return write


@pytest.fixture
def shards(tmp_path: Path, write_shard: Callable[..., Path]) -> Path:
    """A folder of two training shards (12 + 8 rows) and one test shard (6), two classes, 4×4×3."""
    folder = tmp_path / "shards"
    for split, seed, count in (
        ("train-00000-of-00002", 100, 12),
        ("train-00001-of-00002", 200, 8),
        ("test-00000-of-00001", 300, 6),
    ):
        images = [encode(noise(seed + row, 4, 4, 3)) for row in range(count)]
        labels = [row % 2 for row in range(count)]
        write_shard(folder / f"{split}.parquet", images, labels, ["cat", "dog"], row_group_size=5)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder: three training and two test images for each of two classes, 5×5×3."""
    root = tmp_path / "images"
    seed = 0
    for split, count in (("train", 3), ("test", 2)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                seed += 1
                (root / split / name / f"{index}.png").write_bytes(encode(noise(seed, 5, 5, 3)))
    return root
