"""The page's counts of runs and of verdicts."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import get_args

import pandas as pd
import pytest

from smallbatch.analysis.claims import Verdict
from smallbatch.report.claims import ClaimRecord, ClaimsRecord, FindingRecord, counts_sentence
from smallbatch.report.frames import Frames
from smallbatch.report.page import _counts


def runs(outcomes: list[str], sizes: list[float], study: str = "a") -> pd.DataFrame:
    """Runs of one m and η̃, with the BN batch size of each."""
    return pd.DataFrame(
        {"dataset": "d", "study": study, "batch_size": 8, "base_lr": 0.5, "outcome": outcomes,
         "bn_batch_size": sizes}
    )  # fmt: skip


NONE = math.nan


@pytest.mark.parametrize(
    ("plain", "ghost", "said"),
    [
        (runs(["finished"], [NONE]), runs([], []),
         "1 run in 1 cell of 1 study; 0 runs diverged"),
        (runs(["finished", "diverged"], [NONE] * 2), runs([], []),
         "2 runs in 1 cell of 1 study; 1 run diverged"),
        # of a study of BN batch sizes each is a cell
        (runs(["diverged"] * 2, [NONE] * 2), runs(["finished"] * 3, [2.0, 4.0, 4.0], "b"),
         "5 runs in 3 cells of 2 studies; 2 runs diverged"),
    ],
)  # fmt: skip
def test_runs_cells_and_studies_are_counted(
    plain: pd.DataFrame, ghost: pd.DataFrame, said: str
) -> None:
    empty = dict.fromkeys((field.name for field in fields(Frames)), pd.DataFrame())
    assert _counts(Frames(**empty | {"runs": plain, "bn_runs": ghost})) == said


def record(*verdicts: Verdict) -> ClaimsRecord:
    """One claim with a finding of each verdict, as several data sets make them."""
    findings = [
        FindingRecord(dataset="d", scale=None, verdict=verdict, effect=None, low=None, high=None,
                      n=None, reason="")
        for verdict in verdicts
    ]  # fmt: skip
    claim = ClaimRecord(claim="c", figure="1", statement="s", criterion="k", unit="accuracy",
                        findings=findings)  # fmt: skip
    return ClaimsRecord(claims=[claim, claim])


def test_every_verdict_of_every_data_set_is_counted_once() -> None:
    said = counts_sentence(record("supported", "strictly supported", "supported", "undecided"))
    assert said == "2 strictly supported, 4 supported, 0 contradicted, 2 undecided, 0 not run"
    numbers = [int(part.split()[0]) for part in said.split(", ")]
    assert (sum(numbers), len(numbers)) == (8, len(get_args(Verdict)))
