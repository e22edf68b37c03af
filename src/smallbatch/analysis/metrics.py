"""The numbers that DVC shows and compares: few for each study, of the cell that is its answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from smallbatch.analysis.answer import choosing_split
from smallbatch.analysis.cells import MAIN_FRACTION, STUDY_KEYS, summarise_cells
from smallbatch.analysis.frames import on_bn_axis
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.sampling import learned
from smallbatch.analysis.stability import stable_ranges

if TYPE_CHECKING:
    import pandas as pd


def study_metrics(runs: pd.DataFrame, dataset: str | None = None) -> dict[str, float | None]:
    """The content of ``metrics.json``: ``<study>.<name>`` → number, in one level.

    Nothing here depends on the clock or the machine. A number that does not exist is null, for
    example if no run finished.

    Args:
        runs: As `load_results` makes them. Studies of several BN batch sizes have no metrics.
        dataset: The data set whose studies count. By default all do; where there are several,
            names begin with theirs, as two may have a study of one name.
    """
    own = runs[~on_bn_axis(runs)]
    if dataset is not None:
        own = own[own["dataset"] == dataset]
    several = own["dataset"].nunique() > 1
    return {
        f"{name}.{study}.{key}" if several else f"{study}.{key}": value
        for (name, study), group in own.groupby(STUDY_KEYS)
        for key, value in _metrics(group).items()
    }


def _metrics(runs: pd.DataFrame) -> dict[str, float | None]:
    """The numbers of one study.

    ``accuracy``, ``batch_size`` and ``base_lr`` are those of the answer (`answer`), the accuracy
    the test set's as a fraction of 1, ``base_lr`` η̃, under AdamW η; ``stable_octaves`` is how wide
    the stable range is at that batch size, in octaves of it; ``diverged_share`` is the fraction of
    all runs that diverged.
    """
    cells = summarise_cells(runs)
    best = best_cells(cells, choosing_split(cells))
    winners = best_by_study(best).to_dict("records")
    winner = winners[0] if winners else {}
    octaves = math.nan
    if winner and learned(best_cells(cells), runs):
        ranges = stable_ranges(cells, [MAIN_FRACTION])
        octaves = float(ranges["octaves"][ranges["batch_size"] == winner["batch_size"]].iloc[0])
    return {
        "accuracy": _rounded(winner.get("accuracy", math.nan)),
        "batch_size": int(winner["batch_size"]) if winner else None,
        "base_lr": float(winner["base_lr"]) if winner else None,
        "stable_octaves": _rounded(octaves),
        "diverged_share": _rounded(float(runs["outcome"].eq("diverged").mean())),
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")
