"""The sentences on studies of BN batch and SGD batch sizes."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from smallbatch.analysis.ghost import bn_cells
from smallbatch.report.ghost_words import base_lr_sentence, best_sentence, cells_table, warnings

LOST = math.nan


def runs(cells: dict[tuple[int, int], list[float]], **more: Any) -> pd.DataFrame:
    """Runs of one study: the seeds' accuracies at each (m, BN batch); NaN where one diverged."""
    rows = [
        {"dataset": "d", "study": "a", "batch_size": m, "bn_batch_size": float(b), "base_lr": 0.25,
         "bn_batch_sizes": "[2, 4]", "base_lr_from": "source", "run": f"{m}{b}{seed}",
         "lr": 0.25 * m, "optimizer": "sgd", "classes": 10, "n_test": 200,
         "reported_accuracy": value,
         "outcome": "diverged" if math.isnan(value) else "finished"} | more
        for (m, b), values in cells.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({(8, 2): [0.8, 0.81], (8, 4): [0.7, 0.71], (4, 2): [0.5, 0.5], (4, 4): [0.6, 0.61]},
         "Best BN batch size: 4 at m = 4 and 2 at m = 8."),
        # seeds overlap, a tie, and one BN batch size alone
        ({(8, 2): [0.8, 0.9], (8, 4): [0.7, 0.8]},
         "Best BN batch size: 2 at m = 8 (seeds of 4 overlap)."),
        ({(8, 4): [0.8], (8, 2): [0.8]}, ("Best BN batch size: 2 at m = 8 (seeds of 4 "
                                         "overlap).")),
        ({(8, 2): [0.8]}, "Best BN batch size: 2 at m = 8 (the only one tried)."),
        # a seed of the best cell diverged: its median takes the place of its worst seed
        ({(8, 2): [0.8, 0.9, LOST], (8, 4): [0.7, 0.7, 0.79]}, "Best BN batch size: 2 at m = 8."),
        ({(8, 2): [0.8, 0.9, LOST], (8, 4): [0.7, 0.7, 0.8]},
         "Best BN batch size: 2 at m = 8 (seeds of 4 overlap)."),
        # nothing at one m
        ({(8, 2): [0.8], (8, 4): [0.7], (16, 2): [0.8, LOST]},
         ("Best BN batch size: 2 at m = 8. At m = 16 no cell has a median accuracy, as too many "
         "seeds diverged.")),
        ({(8, 2): [LOST, LOST]}, "Every run diverged."),
        # One seed finished, so not every run diverged.
        ({(8, 2): [0.8, LOST]}, "In every cell at least half of the seeds diverged."),
        ({(8, 2): [0.11], (8, 4): [0.1]},
         ("Nothing here learned beyond chance: train longer, or try other learning rates. The best "
         "cell is right on 11.0 % of the test images, guessing on 10.0 %.")),
    ],
)  # fmt: skip
def test_the_best_bn_batch_size_is_as_sure_as_the_seeds_make_it(
    cells: dict[tuple[int, int], list[float]], said: str
) -> None:
    found = runs(cells)
    assert best_sentence(bn_cells(found), found) == said


def test_where_the_learning_rates_are_from() -> None:
    found = runs({(8, 2): [0.8], (16, 2): [0.8]})
    assert base_lr_sentence(found).startswith("Each m was trained at the η̃ that was best for it in "
                                              "source (chosen")  # fmt: skip
    assert "of the study's own grid" in base_lr_sentence(found.assign(base_lr_from=None))
    mixed = base_lr_sentence(found.assign(base_lr_from=pd.Series(["source", None])))
    assert "Batch sizes differ in where their η̃ is from: source and the study's own grid" in mixed
    two = base_lr_sentence(found.assign(base_lr_from=["source", "b"]))
    assert "b and source" in two


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({(8, 2): [0.8, 0.8], (8, 4): [0.7, 0.7]}, []),
        ({(8, 2): [0.8, 0.8, LOST], (8, 4): [0.7, 0.7]}, ["1 run of these cells diverged"]),
        ({(8, 2): [LOST], (8, 4): [LOST]},
         ["2 runs of these cells diverged", "Every cell has one"]),
        ({(8, 2): [0.8], (8, 4): [0.8, 0.8]}, ["Some cells have one seed only"]),
    ],
)  # fmt: skip
def test_diverged_runs_and_single_seeds_are_named(
    cells: dict[tuple[int, int], list[float]], said: list[str]
) -> None:
    found = warnings(bn_cells(runs(cells)))
    assert [line.startswith(part) for line, part in zip(found, said, strict=True)] == [True] * len(
        said
    )


def test_every_cell_has_its_row_with_what_became_of_its_seeds() -> None:
    table = cells_table(
        bn_cells(runs({(8, 4): [0.8, LOST, 0.9], (8, 2): [LOST], (4, 2): [0.5, 0.6]}))
    )
    assert [tuple(row) for row in table.rows] == [
        ("4", "2", "2⁻²", "55.0 %", "50.0 … 60.0 %", "2 of 2"),
        ("8", "2", "2⁻²", "–", "all diverged", "0 of 1"),
        ("8", "4", "2⁻²", "80.0 %", "diverged … 90.0 %", "2 of 3"),
    ]


def test_a_finished_seed_without_an_accuracy_is_not_called_diverged() -> None:
    found = runs({(8, 2): [0.5]}).assign(reported_accuracy=math.nan)
    assert cells_table(bn_cells(found)).rows[0][4:] == ["–", "1 of 1"]
    assert best_sentence(bn_cells(found), found) == "No finished run has an accuracy."
