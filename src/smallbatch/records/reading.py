"""Reads files of this program, and refuses in one line those that are not as it writes them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from io import StringIO
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from smallbatch import durable
from smallbatch.errors import Missing, UserError, first_line
from smallbatch.machine import free_memory

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

Kind = Literal["text", "whole", "number", "truth", "text?", "whole?", "number?"]
"""What a column holds; with a question mark, values may be missing."""


_TEXT = 60  # bytes of a short text in a data frame

_Parsed = TypeVar("_Parsed", bound=BaseModel)


def read_json(kind: type[_Parsed], path: Path, advice: str) -> _Parsed:
    """Read a JSON file.

    Args:
        kind: What it holds.
        path: The file.
        advice: What to do if it is missing or damaged, for the message.

    Raises:
        UserError: The file is missing, unreadable or damaged.
    """
    try:
        return kind.model_validate_json(_read(path, advice))
    except ValidationError as error:
        raise UserError(f"{path}: damaged, {_reason(error)}; {advice}") from error


def read_csv(kind: type[_Parsed], path: Path, advice: str) -> list[_Parsed]:
    """Read a CSV file, each row as a mapping by the first; see :func:`read_json`.

    Raises:
        UserError: The file is missing, unreadable or damaged.
    """
    content = _read(path, advice)
    try:
        rows = csv.DictReader(StringIO(content.decode(), newline=""))
        needed = {name for name, field in kind.model_fields.items() if field.is_required()}
        missing = sorted(needed - set(rows.fieldnames or ()))
        if missing:
            raise csv.Error(f"no column {missing[0]!r}")
        if not content.endswith((b"\n", b"\r")):
            # Cut off, a number may have lost digits and be a number all the same.
            raise csv.Error("its last line has no end")
        return [kind.model_validate_strings(row) for row in rows]
    except (UnicodeDecodeError, csv.Error, ValidationError) as error:
        raise UserError(f"{path}: damaged ({_reason(error)}); {advice}") from error


def read_table(path: Path, kinds: Mapping[str, Kind], advice: str) -> pd.DataFrame:
    """Read a Parquet file.

    Args:
        path: The file.
        kinds: The columns that it must have. Others are kept if their values are plain.
        advice: What to do if it is damaged, for the message.

    Raises:
        UserError: The file is missing, unreadable or damaged, or a column is not of its kind.
    """
    table = _parsed(path, _read(path, advice), advice)
    for name, kind in kinds.items():
        if table.column_names.count(name) != 1:
            raise UserError(f"{path}: damaged, column {name!r}: missing; {advice}")
        column = table.column(name)
        if not _is(kind.rstrip("?"), column.type) or (column.null_count and kind[-1] != "?"):
            found = f"found {column.type}, values missing: {column.null_count}"
            raise UserError(f"{path}: damaged, column {name!r}: {found}, allowed: {kind}; {advice}")
    for name in table.column_names:
        kind = table.column(name).type
        if not any(_is(plain, kind) for plain in ("text", "whole", "number", "truth")):
            raise UserError(f"{path}: damaged, column {name!r}: found {kind}; {advice}")
    frame: pd.DataFrame = table.to_pandas()
    counts = [name for name, kind in kinds.items() if kind == "whole?"]
    return frame.astype(dict.fromkeys(counts, "Int64"))


def _read(path: Path, advice: str) -> bytes:
    try:
        return durable.read(path)
    except FileNotFoundError:
        raise Missing(f"{path}: no such file; {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'content'}: {first['msg']}"
    return first_line(error)


def _parsed(path: Path, content: bytes, advice: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        source = pa.BufferReader(content)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            _check_memory(file.metadata)
            table = file.read()
        table.validate(full=True)
        # Without what pandas notes beside the schema: it may be damaged too.
        return table.replace_schema_metadata(None)
    # Damage surfaces as ArrowException, OSError, ValueError, UnicodeDecodeError and others.
    except Exception as error:
        raise UserError(f"{path}: damaged ({first_line(error)}); {advice}") from error


def _check_memory(file: pq.FileMetaData) -> None:
    """Equal values take no room in a file, so a small one can be more than the memory holds."""
    texts = sum(
        file.schema.column(index).physical_type == "BYTE_ARRAY" for index in range(file.num_columns)
    )
    needed = file.num_rows * (8 * file.num_columns + _TEXT * texts)
    if needed > free_memory():
        raise ValueError(f"its {file.num_rows} rows need {needed / 2**30:.2f} GiB of memory")


def _is(kind: str, found: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_null(found):  # without any value
        return kind != "truth"
    checks = {
        "text": lambda it: types.is_string(it) or types.is_large_string(it),
        "whole": types.is_integer,
        "number": lambda it: types.is_floating(it) or types.is_integer(it),
        "truth": types.is_boolean,
    }
    return checks[kind](found)
