"""The data frames that the page is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from smallbatch.analysis.evaluation import read_evaluation, refuse_stale
from smallbatch.analysis.frames import on_bn_axis
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.ghost import bn_cells
from smallbatch.analysis.stability import stable_ranges
from smallbatch.report.images import read_images


@dataclass(frozen=True)
class Frames:
    """The data of the page, for all studies or for one."""

    runs: pd.DataFrame
    bn_runs: pd.DataFrame
    cells: pd.DataFrame
    history: pd.DataFrame
    best: pd.DataFrame
    best_on_validation: pd.DataFrame
    winners: pd.DataFrame
    ranges: pd.DataFrame
    bn_cells: pd.DataFrame
    images: pd.DataFrame

    def only(self, **where: str) -> Frames:
        """Keep the rows of one data set, or of one study of it."""
        kept: dict[str, pd.DataFrame] = {}
        for name, frame in vars(self).items():
            for key, value in where.items():
                frame = frame[frame[key] == value]
            kept[name] = frame
        return Frames(**kept)

    @property
    def all_runs(self) -> pd.DataFrame:
        """The runs of studies of either kind."""
        return pd.concat([self.runs, self.bn_runs])


def load_frames(evaluation_dir: Path, models_dir: Path) -> Frames:
    """The data frames of an evaluation.

    Raises:
        UserError: The evaluation is missing, or of other columns, or a file is damaged.
    """
    runs, cells, history = read_evaluation(evaluation_dir)
    if models_dir.is_dir():
        refuse_stale(runs, evaluation_dir, models_dir)
    best = best_cells(cells)
    return Frames(
        runs=runs[~on_bn_axis(runs)],
        bn_runs=runs[on_bn_axis(runs)],
        cells=cells,
        history=history,
        best=best,
        best_on_validation=best_cells(cells, "validation"),
        winners=best_by_study(best),
        ranges=stable_ranges(cells),
        bn_cells=bn_cells(runs),
        images=read_images(models_dir),
    )
