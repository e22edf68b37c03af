"""Accuracy by BN batch size at each SGD batch size (arXiv 1804.07612, Figs. 13 and 14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from smallbatch.analysis.cells import STUDY_KEYS, ranked
from smallbatch.analysis.frames import on_bn_axis

if TYPE_CHECKING:
    import pandas as pd


def bn_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarise the runs of studies with several BN batch sizes over the seeds.

    Args:
        runs: One row per run, as `load_results` makes them.

    Returns:
        One row per (dataset, study, batch_size, bn_batch_size): ``base_lr`` (taken from another
        study's best cell), ``n_seeds``, ``n_diverged``, ``accuracy`` (median over seeds of the
        reported accuracy, with diverged runs below all others; NaN if it falls on one),
        ``min_accuracy``, ``max_accuracy`` and ``chance``.
    """
    runs = runs[on_bn_axis(runs)]
    marked = runs.assign(
        _diverged=runs["outcome"].eq("diverged"), _accuracy=ranked(runs, "reported_accuracy")
    )
    grouped = marked.groupby([*STUDY_KEYS, "batch_size", "bn_batch_size"], as_index=False)
    cells = grouped.agg(
        base_lr=("base_lr", "first"),
        n_seeds=("run", "size"),
        n_diverged=("_diverged", "sum"),
        accuracy=("_accuracy", "median"),
        min_accuracy=("_accuracy", "min"),
        max_accuracy=("_accuracy", "max"),
        classes=("classes", "first"),
    ).replace([-np.inf], np.nan)
    cells["chance"] = 1.0 / cells.pop("classes")
    return cells.astype({"bn_batch_size": int})
