"""The claim on the variance of an update, which `smallbatch measure` measures without runs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from smallbatch.analysis.claim import Claim, Part
from smallbatch.analysis.comparisons import mean_within
from smallbatch.analysis.evidence import Evidence, UndecidableError

SLOPE_WITHIN = 0.1  # largest distance from 1 of the slope of log variance against log m


def _linear(evidence: Evidence) -> list[Part]:
    parts: list[Part] = []
    for study, rows in evidence.variances.groupby("study"):
        try:
            parts.append(_slope(evidence, str(study), rows))
        except UndecidableError as error:
            parts.append(Part(str(study), 0, None, limit=str(error)))
    return parts


def _slope(evidence: Evidence, study: str, rows: pd.DataFrame) -> Part:
    evidence.refuse_other_measured(study, rows)
    if rows["base_lr"].nunique() > 1:
        raise UndecidableError(f"{study}: measured at several η̃; run smallbatch measure")
    if "norm" in rows and set(rows["norm"].dropna()) - {"none"}:
        raise UndecidableError(f"{study}: measured with a norm")
    along = rows[rows["seen"].fillna(0) > 0]
    if along.empty:
        raise UndecidableError(
            f"{study}: measured at the first weights alone, where it is an identity; run "
            "smallbatch measure"
        )
    table = along.pivot_table(
        index=["seed", "seen"], columns="batch_size", values="variance", dropna=False
    )
    found = table.to_numpy(dtype=float)
    if table.shape[1] < 3:
        raise UndecidableError(f"{study}: fewer than three batch sizes with a variance")
    if along["variance"].isna().any():
        raise UndecidableError(f"{study}: a run diverged while it was measured")
    if np.isnan(found).any():
        raise UndecidableError(f"{study}: not every m was measured at every point of training")
    if not (found > 0).all():
        raise UndecidableError(f"{study}: a variance is 0")
    # Of each seed the mean over the points of training.
    means = table.apply(np.log2).groupby("seed").mean()
    log_m = np.log2(means.columns.to_numpy(dtype=float))
    centred = log_m - log_m.mean()
    slopes = means.to_numpy(dtype=float) @ centred / (centred**2).sum()
    name = f"{study}: slope {slopes.mean():.3f}"
    return Part(name, len(slopes), partial(mean_within, slopes, 1.0, SLOPE_WITHIN))


CLAIMS = (
    Claim(
        name="update-variance-linear",
        figure="text",
        statement="At fixed η̃ the variance of an update is linear in m",
        criterion="The slope of log variance of one update against log m at fixed η̃ along training "
        "(each m at its own weights after as many examples, batches of 2 … 128, studies without "
        f"BN) is, averaged over seeds, less than {SLOPE_WITHIN:g} from 1; the effect is that minus "
        "the distance. At fixed weights it is an identity, which decides nothing.",
        unit="slope",
        studies=("1", "2", "3", "text"),
        parts=_linear,
        any_study=True,
        measurement="variances",
    ),
)
