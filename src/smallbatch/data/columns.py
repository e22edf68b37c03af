"""Which columns of a Parquet file are the images and their labels, if nobody says it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from smallbatch.data.choice import listed
from smallbatch.data.labels import is_text, stated_classes
from smallbatch.data.parquet import encoded_in, is_of_images, parquet_file, reading
from smallbatch.data.sizes import LOOKED_AT
from smallbatch.data.split import Encoded
from smallbatch.errors import UserError

_IMAGES, _LABELS = ("img", "image"), ("label", "labels")  # as columns are usually called
_ROW_GROUPS = 8  # that images are read from: each is read as a whole


def columns_of(path: Path) -> tuple[str, str]:
    """The names of the image and the label column, by their types.

    Of several label columns it is the only one with class names in the schema. Else the only one
    with a usual name is taken.

    Raises:
        UserError: There is none, or which one is meant is open.
    """
    with reading(path), parquet_file(path) as file:
        schema = file.schema_arrow
    images = [field.name for field in schema if is_of_images(field.type)]
    labels = [field.name for field in schema if _may_be_labels(field)]
    metadata = schema.metadata or {}
    named = [name for name in labels if stated_classes(path, metadata, name) is not None]
    if not images:
        raise UserError(
            f"{path}: found no column of images among {listed(schema.names)}; "
            "allowed: one of type binary or struct<bytes: binary, path: string>"
        )
    if not labels:
        raise UserError(
            f"{path}: found no column of labels among {listed(schema.names)}; "
            "allowed: one of integers or text"
        )
    return (
        _only(path, images, _IMAGES, "image_column"),
        _only(path, named or labels, _LABELS, "label_column"),
    )


def spread(paths: list[Path], image_column: str) -> Iterator[Encoded]:
    """Yields up to ``LOOKED_AT`` images, evenly over a few row groups, these evenly over the files.

    Raises:
        UserError: A file is damaged.
    """
    groups: list[tuple[Path, int, int]] = []  # path, first row, number of rows
    for path in paths:
        with reading(path), parquet_file(path) as file:
            start = 0
            for index in range(file.num_row_groups):
                rows = file.metadata.row_group(index).num_rows
                if rows:
                    groups.append((path, start, rows))
                start += rows
    chosen = groups[:: max(1, -(-len(groups) // _ROW_GROUPS))]
    for path, start, rows in chosen:
        inside = np.unique(np.linspace(0, rows - 1, LOOKED_AT // len(chosen)).astype(np.intp))
        yield from encoded_in(path, start + inside, image_column)


def _may_be_labels(field: pa.Field) -> bool:
    if field.name.startswith("__index_level_"):  # the rows' numbers, as pandas writes them
        return False
    return pa.types.is_integer(field.type) or is_text(field.type)


def _only(path: Path, names: list[str], usual: tuple[str, ...], key: str) -> str:
    called_so = [name for name in names if name in usual]
    for some in (names, called_so):
        if len(some) == 1:
            return some[0]
    raise UserError(
        f"{path}: found {listed(names)}, each of which may be dataset.{key}; allowed: one, so "
        f"rename it to {usual[0]!r}, or write its name into params.yaml"
    )
