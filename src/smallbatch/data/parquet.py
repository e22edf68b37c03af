"""The source ``parquet``: shards in the layout of the Hugging Face hub.

A folder holds the shards of each split as ``train-*.parquet``, as ``train.parquet`` or in a folder
``train/``; or one folder in it does so, such as the hub's ``data/`` and ``default/``. Labels are
read at once. Images are read a few rows at a time, and only selected rows are decoded.
"""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smallbatch.config.dataset import MEGAPIXELS
from smallbatch.data.choice import choose
from smallbatch.data.files import composed
from smallbatch.data.images import Encoded, decode_all
from smallbatch.data.shards import complete, find_shards, left_out
from smallbatch.data.split import Images, Labels, Rows, Source, Split
from smallbatch.durable import check_regular
from smallbatch.errors import UserError, is_out_of_memory
from smallbatch.machine import free_memory

_BUFFER = 2**20  # bytes
_LABEL = 64  # bytes of memory that a label takes until rows are chosen; 52 were measured
_ROWS = 64  # of images at once: of a dictionary one image may be in any number of rows


@dataclass(frozen=True)
class _Shard:
    """One file: its labels (n,) as written, and the class names in its schema, if any."""

    path: Path
    labels: Labels
    classes: tuple[str, ...] | None


def open_parquet(
    folder: Path,
    image_column: str,
    label_column: str,
    image_size: int | None,
    *,
    test_split: str | None = None,
    max_megapixels: int = MEGAPIXELS,
) -> Source:
    """Opens a folder of Parquet shards.

    The image column holds encoded images (PNG, JPEG, WebP), either as binary or as a struct of
    ``bytes`` and ``path``; if ``bytes`` is null, ``path`` is a file inside the folder. Class names
    are those of the ClassLabel in the schema's ``huggingface`` metadata, otherwise the labels.

    Args:
        folder: The folder with the shards.
        image_column: Name of the image column.
        label_column: Name of the label column, of an integer type.
        image_size: Side of the square that images are resized to; None needs equal sizes.
        test_split: The name of the test split; None: the first of the common names.
        max_megapixels: Larger images are refused.

    Returns:
        The source; images are decoded when they are read.

    Raises:
        UserError: A shard or column is missing or damaged, or a label is null, not an integer
            or out of range.
    """
    if not folder.is_dir():
        raise UserError(f"dataset.path: found {folder}, which is not a folder; allowed: a folder")
    try:
        found = find_shards(folder)
        choice = choose(folder, list(found), test_split)
        train, test = (complete(folder, name, found[name]) for name in (choice.train, choice.test))
        notes = [note for note in (choice.note, left_out(folder, found)) if note is not None]
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot read it ({error.strerror})") from error
    splits = [[_open_shard(path, image_column, label_column) for path in paths]
              for paths in (train, test)]  # fmt: skip
    # All labels lie in memory by now; what is done with them takes the rest.
    rows = sum(len(shard.labels) for shards in splits for shard in shards)
    _check_memory(f"{folder}: {rows} labels", (_LABEL - 8) * rows, "fewer rows")
    classes = _class_names([shard for shards in splits for shard in shards], label_column)
    _check_labels(splits[0], len(classes), ())
    _check_labels(splits[1], len(classes), choice.others)
    read = (_split(shards, image_column, image_size, max_megapixels) for shards in splits)
    return Source(classes, *read, note="; ".join(notes) or None)


@contextmanager
def _reading(path: Path) -> Generator[None, None, None]:
    """Turns any error of the Parquet reader, which a damaged file may cause, into one line."""
    try:
        yield
    except UserError:
        raise
    # Damage surfaces as ArrowException, OSError, ValueError, UnicodeDecodeError and others.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if is_out_of_memory(error):
            raise UserError(f"{path}: not enough memory to read it ({reason})") from error
        raise UserError(f"{path}: not a readable Parquet file ({reason})") from error


def _check_memory(where: str, needed: int, allowed: str) -> None:
    if needed > free_memory():  # which the system would grant at first, and then stop us
        raise UserError(
            f"{where} need {needed / 2**30:.2f} GiB of memory to be read, more than there is; "
            f"allowed: {allowed}"
        )


def _parquet(path: Path) -> pq.ParquetFile:
    check_regular(path)
    # Without a buffer a whole column of a row group is read at once, and not page by page.
    return pq.ParquetFile(
        path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER
    )


def _open_shard(path: Path, image_column: str, label_column: str) -> _Shard:
    with _reading(path), _parquet(path) as file:
        schema = file.schema_arrow
        for key, column in (("image_column", image_column), ("label_column", label_column)):
            if schema.names.count(column) != 1:
                raise UserError(
                    f"{path}: found no column {column!r}; "
                    f"allowed for dataset.{key}: {', '.join(schema.names)}"
                )
        _check_image_type(path, image_column, schema.field(image_column).type)
        rows = file.metadata.num_rows
        _check_memory(f"{path}: {rows} labels", _LABEL * rows, "fewer rows")
        classes = _stated_classes(path, schema.metadata or {}, label_column)
        labels = _labels(path, label_column, file.read(columns=[label_column])[label_column])
        if len(labels) != rows:
            raise UserError(f"{path}: labels: found {len(labels)}, its own index says {rows}")
        return _Shard(path, labels, classes)


def _check_image_type(path: Path, name: str, found: pa.DataType) -> None:
    inner = found
    if pa.types.is_struct(found):
        index = found.get_field_index("bytes")
        inner = found.field(index).type if index >= 0 else found
    if _without_view(inner) not in (pa.binary(), pa.large_binary()):
        raise UserError(
            f"{path}: column {name!r} has type {found}; "
            "allowed: binary, or struct<bytes: binary, path: string>"
        )


def _without_view(found: pa.DataType) -> pa.DataType:
    """The type, or one of the same values from which rows can be taken."""
    if pa.types.is_struct(found):
        fields = [found.field(index) for index in range(found.num_fields)]
        return pa.struct([field.with_type(_without_view(field.type)) for field in fields])
    if pa.types.is_binary_view(found):
        return pa.large_binary()
    return pa.large_string() if pa.types.is_string_view(found) else found


def _stated_classes(
    path: Path, metadata: dict[bytes, bytes], label_column: str
) -> tuple[str, ...] | None:
    if b"huggingface" not in metadata:
        return None
    try:
        features: Any = json.loads(metadata[b"huggingface"])["info"]["features"]
        names: Any = features[label_column].get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # the metadata has no class names; the labels are then the names
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: the class names in its schema metadata are not a list of text")
    return tuple(composed(name) for name in names)


def _labels(path: Path, name: str, column: pa.ChunkedArray) -> Labels:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{path}: column {name!r} has type {column.type}; allowed: integers")
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise UserError(f"{path}, row {row}: found no label in {name!r}; allowed: an integer")
    return column.cast(pa.int64()).to_numpy()


def _class_names(shards: list[_Shard], label_column: str) -> tuple[str, ...]:
    """The classes in the schemas, which must agree; if none, 0 … the largest label in any shard."""
    stated = shards[0].classes
    for shard in shards:
        if shard.classes != stated:
            raise UserError(
                f"{shard.path}: its schema's class names differ from those of {shards[0].path}"
            )
    if stated is not None:
        return stated
    present = np.unique(np.concatenate([shard.labels for shard in shards]))
    present = present[present >= 0]
    # The first missing label; counting would take for ever if a damaged label is huge.
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps):
        raise UserError(
            f"{shards[0].path.parent}: column {label_column!r} has no label {gaps[0]} but has "
            f"{present[-1]}; allowed: labels 0, 1, 2, … without a gap"
        )
    return tuple(str(label) for label in present)


def _check_labels(shards: list[_Shard], classes: int, others: tuple[str, ...]) -> None:
    """Refuses labels that are no classes, as of a test split whose labels are withheld."""
    for shard in shards:
        outside = (shard.labels < 0) | (shard.labels >= classes)
        if outside.any():
            row = int(np.argmax(outside))
            option = f", or dataset.test_split: {' or '.join(others)}" if others else ""
            raise UserError(
                f"{shard.path}, row {row}: found label {shard.labels[row]}; "
                f"allowed: 0 to {classes - 1}{option}"
            )


def _split(
    shards: list[_Shard], image_column: str, image_size: int | None, max_megapixels: int
) -> Split:
    def read(rows: Rows) -> Images:
        encoded = _encoded(shards, rows, image_column)
        return decode_all(encoded, len(rows), image_size, max_megapixels)

    first = shards[0].path
    where = first if len(shards) == 1 else f"{first} and {len(shards) - 1} more"
    return Split(str(where), np.concatenate([shard.labels for shard in shards]), read)


def _encoded(shards: list[_Shard], rows: Rows, image_column: str) -> Iterator[Encoded]:
    """Yields the encoded images of ascending rows, which are counted over all shards."""
    start = 0
    for shard in shards:
        end = start + len(shard.labels)
        inside = rows[(rows >= start) & (rows < end)] - start
        if len(inside):
            yield from _encoded_in_shard(shard.path, inside, image_column)
        start = end


def _encoded_in_shard(path: Path, rows: Rows, image_column: str) -> Iterator[Encoded]:
    with _reading(path), _parquet(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if ((rows >= start) & (rows < end)).any():
                _check_memory(
                    f"{path}: the images of rows {start} to {end - 1}, one row group,",
                    _uncompressed(file.metadata.row_group(group), image_column),
                    "more and smaller row groups",
                )
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[image_column]):
                    inside = rows[(rows >= start) & (rows < start + len(batch))]
                    column = batch[image_column]
                    values = column.cast(_without_view(column.type)).take(pa.array(inside - start))
                    for row, (content, name) in zip(inside, _contents(values), strict=True):
                        yield _one(path, int(row), content, name)
                    start += len(batch)
                if start != end:
                    break
            start = end
        if rows[-1] >= start:
            raise UserError(f"{path}: rows of images: found {start}; allowed: one for each label")


def _uncompressed(group: pq.RowGroupMetaData, name: str) -> int:
    """Bytes of a column of a row group, with the fields that it has if it is a struct."""
    columns = (group.column(index) for index in range(group.num_columns))
    return sum(
        column.total_uncompressed_size
        for column in columns
        if f"{column.path_in_schema}.".startswith(f"{name}.")
    )


def _contents(column: pa.Array) -> Iterator[tuple[bytes | None, str | None]]:
    """Yields (bytes, path) for each row of an image column, in either layout."""
    if not pa.types.is_struct(column.type):
        yield from ((value.as_py(), None) for value in column)
        return
    fields = column.flatten()  # unlike field(), makes the children of a null row null
    contents = fields[column.type.get_field_index("bytes")]
    index = column.type.get_field_index("path")
    for row in range(len(column)):
        content = contents[row].as_py()
        # A path that is not used may have any type and be invalid text.
        yield content, fields[index][row].as_py() if content is None and index >= 0 else None


def _one(shard: Path, row: int, content: bytes | None, name: str | None) -> Encoded:
    where = f"{shard}, row {row}"
    if content is not None:
        return Encoded(where, content)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: found no image; allowed: encoded bytes or the path of a file")
    folder = shard.parent.resolve()
    file = (folder / name).resolve()
    if not file.is_relative_to(folder):
        raise UserError(f"{where}: path {name!r} leads outside {folder}; allowed: a file inside")
    return Encoded(f"{where} ({name})", file)
