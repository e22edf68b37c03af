"""The source ``parquet``: shards in the layout of the Hugging Face hub.

A folder holds the shards of each split as ``train-*.parquet``, as ``train.parquet`` or in a folder
``train/``; or one folder in it does so, such as the hub's ``data/`` and ``default/``. If a test
split is to be held out, there is one split only, or one file. Labels are
read at once. Images are read a few rows at a time, and only selected rows are decoded.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smallbatch.config.dataset import MEGAPIXELS
from smallbatch.data.choice import choose
from smallbatch.data.files import no_folder
from smallbatch.data.held_out import hold_out
from smallbatch.data.images import decode_all
from smallbatch.data.labels import Shard, alike, check_labels, shard_of
from smallbatch.data.shards import complete, find_shards, left_out
from smallbatch.data.split import Encoded, Images, Rows, Source, Split
from smallbatch.durable import check_regular
from smallbatch.errors import UserError, is_out_of_memory
from smallbatch.machine import free_memory

_BUFFER = 2**20  # bytes
_LABEL = 64  # bytes of memory that a label takes until rows are chosen; 52 were measured
_ROWS = 64  # of images at once: of a dictionary one image may be in any number of rows


def open_parquet(
    path: Path,
    image_column: str,
    label_column: str,
    image_size: int | None,
    *,
    test_split: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    max_megapixels: int = MEGAPIXELS,
) -> Source:
    """Opens a folder of Parquet shards, or one of them that holds all images.

    The image column holds encoded images (PNG, JPEG, WebP), either as binary or as a struct of
    ``bytes`` and ``path``; if ``bytes`` is null, ``path`` is a file inside the folder. Class names
    are those of the ClassLabel in the schema's ``huggingface`` metadata, otherwise the labels.

    Args:
        path: The folder with the shards; or one file, with ``test_fraction``.
        image_column: Name of the image column.
        label_column: Name of the label column, of integers or text.
        image_size: Side of the square that images are resized to; None needs equal sizes.
        test_split: The name of the test split; None: the first of the common names.
        test_fraction: The share that is held out as the test split, where there is none.
        seed: The data set's seed, by which it is drawn.
        max_megapixels: Larger images are refused.

    Returns:
        The source; images are decoded when they are read.

    Raises:
        UserError: A shard or column is missing or damaged, a label is null, neither an integer
            nor text, or out of range, or there is a test split where one is to be held out.
    """
    files, others, note = shard_files(path, test_split, held_out=test_fraction is not None)
    opened = [[_open_shard(each, image_column, label_column) for each in paths] for paths in files]
    # All labels lie in memory by now; what is done with them takes the rest.
    rows = sum(len(shard.labels) for shards in opened for shard in shards)
    _check_memory(f"{path}: {rows} labels", (_LABEL - 8) * rows, "fewer rows")
    classes, parts = alike(opened, label_column)
    for part, instead in zip(parts, ((), others), strict=False):
        check_labels(part, len(classes), instead)
    splits = [_split(part, image_column, image_size, max_megapixels) for part in parts]
    if test_fraction is not None:
        splits = hold_out(splits[0], classes, test_fraction, seed)
    return Source(classes, *splits, note=note)


def shard_files(
    path: Path, test_split: str | None, *, held_out: bool
) -> tuple[list[list[Path]], tuple[str, ...], str | None]:
    """The shards of the splits that are used.

    Args:
        path: The folder with the shards; or one file, if ``held_out``.
        test_split: The name of the test split; None: the first of the common names.
        held_out: The test split is held out of the training split.

    Returns:
        The files of the training split, and of the test split unless ``held_out``; the names of the
        splits that are not used; a line for the user.

    Raises:
        UserError: A split or shard is missing, or there is a test split where one is held out.
    """
    if held_out and path.is_file():
        return [[path]], (), None
    if not path.is_dir():
        raise UserError(
            f"dataset.path: {no_folder(path)}; allowed: a folder, or one file with "
            "dataset.test_fraction"
        )
    try:
        found = find_shards(path)
        choice = choose(path, list(found), test_split, held_out=held_out)
        chosen = [name for name in (choice.train, choice.test) if name is not None]
        files = [complete(path, name, found[name]) for name in chosen]
        notes = [note for note in (choice.note, left_out(path, found)) if note is not None]
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot read it ({error.strerror})") from error
    return files, choice.others, "; ".join(notes) or None


@contextmanager
def reading(path: Path) -> Generator[None, None, None]:
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


def parquet_file(path: Path) -> pq.ParquetFile:
    """Opens a file so that its pages are checked, and read one by one.

    Raises:
        OSError: It cannot be read.
        UserError: It is no regular file.
    """
    check_regular(path)
    # Without a buffer a whole column of a row group is read at once, and not page by page.
    return pq.ParquetFile(
        path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER
    )


def _open_shard(path: Path, image_column: str, label_column: str) -> Shard:
    with reading(path), parquet_file(path) as file:
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
        column = file.read(columns=[label_column])[label_column]
        shard = shard_of(path, label_column, column, schema.metadata or {})
        if len(shard.labels) != rows:
            raise UserError(f"{path}: labels: found {len(shard.labels)}, its own index says {rows}")
        return shard


def is_of_images(found: pa.DataType) -> bool:
    """Whether a column of this type may hold encoded images: binary, or a struct with ``bytes``."""
    inner = found
    if pa.types.is_struct(found):
        index = found.get_field_index("bytes")
        inner = found.field(index).type if index >= 0 else found
    return _without_view(inner) in (pa.binary(), pa.large_binary())


def _check_image_type(path: Path, name: str, found: pa.DataType) -> None:
    if not is_of_images(found):
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


def _split(
    shards: list[Shard], image_column: str, image_size: int | None, max_megapixels: int
) -> Split:
    def encoded(rows: Rows) -> Iterator[Encoded]:
        return _encoded(shards, rows, image_column)

    def read(rows: Rows) -> Images:
        return decode_all(encoded(rows), len(rows), image_size, max_megapixels)

    first = shards[0].path
    where = first if len(shards) == 1 else f"{first} and {len(shards) - 1} more"
    return Split(str(where), np.concatenate([shard.labels for shard in shards]), read, encoded)


def _encoded(shards: list[Shard], rows: Rows, image_column: str) -> Iterator[Encoded]:
    """Yields the encoded images of ascending rows, which are counted over all shards."""
    start = 0
    for shard in shards:
        end = start + len(shard.labels)
        inside = rows[(rows >= start) & (rows < end)] - start
        if len(inside):
            yield from encoded_in(shard.path, inside, image_column)
        start = end


def encoded_in(path: Path, rows: Rows, image_column: str) -> Iterator[Encoded]:
    """Yields the encoded images of ascending rows of one file, one row or more.

    Raises:
        UserError: The file is damaged or too large for the memory, or a row has no image.
    """
    with reading(path), parquet_file(path) as file:
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
