"""What became of images that are kept encoded, and of batches that did not fit, by column.

The tables of an evaluation do not have it: a column's own files do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.records.columns import find_columns, read_record, read_timing

if TYPE_CHECKING:
    from pathlib import Path

_PLACE = ["dataset", "study", "batch_size"]
SEEN = ("short_side", "crop_ratio", "micro_batch")
"""The largest short side in pixels and the crop ratio, as of `data.prepared.Meta`, and the examples
that were computed at a time; missing for pixels, without ``input: timm``, and for whole batches."""


def read_images(models_dir: Path) -> pd.DataFrame:
    """`SEEN` of every complete column, a row for each with its data set, study and batch size.

    Raises:
        UserError: A file of a column is damaged.
    """
    rows: list[list[Any]] = []
    for directory in find_columns(models_dir)[0] if models_dir.is_dir() else []:
        record = read_record(directory)
        meta, parts = record.dataset, read_timing(directory, record).column.get("micro_batch")
        rows.append([meta.name, record.study, record.batch_size, meta.short_side, meta.crop_ratio,
                     parts])  # fmt: skip
    return pd.DataFrame(rows, columns=[*_PLACE, *SEEN])


def with_images(runs: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Runs with the columns `SEEN`, of what `read_images` found."""
    return runs.merge(images.drop_duplicates(_PLACE), "left", _PLACE) if len(images) else runs
