"""The labels of Parquet shards, and the classes that they name.

Labels are integers, whose names are those of the ClassLabel in the schema's ``huggingface``
metadata, or text, which is itself the name.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from smallbatch.data.files import composed
from smallbatch.data.split import Labels
from smallbatch.errors import UserError


@dataclass(frozen=True)
class Shard:
    """One file's labels.

    Attributes:
        path: The file.
        labels: As written (n,); of text, the index in ``classes``.
        classes: The class names in its schema, if any; of text, the different ones, sorted.
        text: Whether the labels are text.
    """

    path: Path
    labels: Labels
    classes: tuple[str, ...] | None
    text: bool = False


def shard_of(path: Path, name: str, column: pa.ChunkedArray, metadata: dict[bytes, bytes]) -> Shard:
    """One file's labels from its label column.

    Args:
        path: The file.
        name: The column's name.
        column: The column (n,).
        metadata: Of the file's schema.

    Raises:
        UserError: A label is null, or neither an integer nor text.
    """
    if text := is_text(column.type):
        column = column.cast(pa.large_string())  # first, as a dictionary may hide a null
    elif not pa.types.is_integer(column.type):
        raise UserError(
            f"{path}: column {name!r} has type {column.type}; allowed: integers, or text"
        )
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise UserError(f"{path}, row {row}: found no label in {name!r}; allowed: one in each row")
    if not text:
        stated = stated_classes(path, metadata, name)
        return Shard(path, column.cast(pa.int64()).to_numpy(), stated)
    different = column.unique()
    names = [composed(each) for each in different.to_pylist()]
    classes = tuple(sorted(set(names)))
    index = {each: position for position, each in enumerate(classes)}
    labels = np.array([index[each] for each in names], dtype=np.int64)
    rows: pa.ChunkedArray = pc.index_in(column, different)  # pyright: ignore[reportAttributeAccessIssue]
    return Shard(path, labels[rows.to_numpy()], classes, text=True)


def is_text(found: pa.DataType) -> bool:
    """Whether a column of this type holds text, be it as a dictionary."""
    inner = found.value_type if pa.types.is_dictionary(found) else found
    return (
        pa.types.is_string(inner)
        or pa.types.is_large_string(inner)
        or pa.types.is_string_view(inner)
    )


def stated_classes(path: Path, metadata: dict[bytes, bytes], name: str) -> tuple[str, ...] | None:
    """The class names that a schema's metadata has for a column; None: it has none.

    Raises:
        UserError: They are no list of text.
    """
    if b"huggingface" not in metadata:
        return None
    try:
        features: Any = json.loads(metadata[b"huggingface"])["info"]["features"]
        names: Any = features[name].get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # the metadata has no class names; the labels are then the names
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: the class names in its schema metadata are not a list of text")
    return tuple(composed(name) for name in names)


def alike(
    splits: list[list[Shard]], label_column: str
) -> tuple[tuple[str, ...], list[list[Shard]]]:
    """The classes of all shards of all splits, and these with labels that count through them.

    Those of text are all that occur, sorted. Of integers those in the schemas, which must agree; if
    none, 0 … the largest label in any shard.

    Raises:
        UserError: The shards differ in it, or labels without names have a gap.
    """
    shards = [shard for split in splits for shard in split]
    for shard in shards:
        if shard.text != shards[0].text:
            found, allowed = ("string", "integers") if shard.text else ("integer", "text")
            raise UserError(
                f"{shard.path}: column {label_column!r} has type {found}; "
                f"allowed: {allowed}, as in {shards[0].path}"
            )
    if shards[0].text:
        classes = tuple(sorted({name for shard in shards for name in shard.classes or ()}))
        index = {name: position for position, name in enumerate(classes)}
        return classes, [[_counted(shard, index) for shard in split] for split in splits]
    for shard in shards:
        if shard.classes != shards[0].classes:
            raise UserError(
                f"{shard.path}: its schema's class names differ from those of {shards[0].path}"
            )
    stated = shards[0].classes
    return _without_gap(shards, label_column) if stated is None else stated, splits


def check_labels(shards: list[Shard], classes: int, others: tuple[str, ...]) -> None:
    """Refuses labels that are no classes, as of a test split whose labels are withheld.

    Args:
        shards: Those of one split.
        classes: How many there are.
        others: The names of splits that might be used instead.

    Raises:
        UserError: A label is one.
    """
    for shard in shards:
        outside = (shard.labels < 0) | (shard.labels >= classes)
        if outside.any():
            row = int(np.argmax(outside))
            option = f", or dataset.test_split: {' or '.join(others)}" if others else ""
            raise UserError(
                f"{shard.path}, row {row}: found label {shard.labels[row]}; "
                f"allowed: 0 to {classes - 1}{option}"
            )


def _counted(shard: Shard, index: dict[str, int]) -> Shard:
    """A shard of text with labels that are indices of all shards' classes."""
    new = np.array([index[name] for name in shard.classes or ()], dtype=np.int64)
    return replace(shard, labels=new[shard.labels])


def _without_gap(shards: list[Shard], label_column: str) -> tuple[str, ...]:
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
