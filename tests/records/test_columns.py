"""The reported accuracy of a run, and how many epochs it is the median over."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from smallbatch.records.columns import RUN_KEYS, reported_accuracies, reported_epochs


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, 1), (2, 1), (5, 1), (7, 1), (8, 1), (15, 1), (16, 2), (24, 3), (39, 4),
        (40, 5), (41, 5), (80, 5), (82, 5), (164, 5), (200, 5),
    ],
)  # fmt: skip
def test_it_is_the_last_eighth_but_one_at_least_and_five_at_most(
    epochs: int, expected: int
) -> None:
    assert reported_epochs(epochs) == expected


def _history(run: str, accuracies: list[float], outcome: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **dict(zip(RUN_KEYS, ("digits", "study", run), strict=True)),
            "epoch": range(1, len(accuracies) + 1),
            "test_accuracy": accuracies,
            "validation_accuracy": math.nan,
            "outcome": outcome,
        }
    )


def test_runs_of_other_lengths_each_have_their_own_last_epochs() -> None:
    """As the columns of one study with equal updates have."""
    rising = [epoch / 100 for epoch in range(1, 81)]
    runs = {epochs: _history(f"{epochs}", rising[:epochs], "finished") for epochs in (4, 16, 80)}
    reported = reported_accuracies(pd.concat(runs.values()).sample(frac=1, random_state=0))
    found = reported.droplevel(["dataset", "study"])["reported_accuracy"]
    assert found.to_dict() == pytest.approx({"4": 0.04, "16": 0.155, "80": 0.78})
    assert reported["reported_validation_accuracy"].isna().all()


def test_a_run_that_diverges_at_its_end_reports_nothing() -> None:
    """Although the epochs before would make a median."""
    history = _history("a", [0.5] * 39 + [math.nan], "diverged")
    assert reported_accuracies(history)["reported_accuracy"].isna().all()
