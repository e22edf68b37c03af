from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from smallbatch.report.second_opinions import (
    budget_table,
    choice_table,
    objection,
    validation_sentence,
)
from tests.analysis.accuracies import PLAIN_SGD

SETTINGS: dict[str, Any] = {
    "model": "resnet8", "norm": "none", "bn_batch_size": None, "augment": False,
    "weight_decay": 0.0, "milestones": "[0.5]", "lr_decay": 0.1, "warmup": 0.0,
    "precision": "float32", **PLAIN_SGD,
}  # fmt: skip
PLACE: dict[str, Any] = {
    "classes": 10, "n_test": 200, "base_lr": 0.25, "fingerprint": "f", "protocol": 2,
}  # fmt: skip


def runs(*budgets: tuple[str, str]) -> pd.DataFrame:
    rows = [
        # As `load_results` has them: settings are between the updates and the parameters.
        {"dataset": "d", "study": study, "batch_size": m, **PLACE,
         "updates": 80 // m if budget == "epochs" else 10, "budget": budget,
         "epochs": 8 if budget == "epochs" else m, **SETTINGS, "parameters": 10}
        for study, budget in budgets for m in (2, 8)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def best(accuracies: dict[tuple[str, int], float], edge: str = "") -> pd.DataFrame:
    rows = [
        {"dataset": "d", "study": study, "batch_size": m, "base_lr": 0.25, "accuracy": value,
         "min_accuracy": value - 0.01, "max_accuracy": value + 0.01, "grid_edge": edge,
         "chosen_on": "test", "validation_accuracy": value}
        for (study, m), value in accuracies.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


BOTH = runs(("a", "epochs"), ("b", "updates of 8"))
ACCURACIES = {("a", 2): 0.8, ("a", 8): 0.7, ("b", 2): 0.5, ("b", 8): 0.9}


def test_both_budgets_stand_side_by_side() -> None:
    table = budget_table(best(ACCURACIES), BOTH)
    assert table is not None
    assert [tuple(row) for row in table.rows] == [
        ("2", "a", "equal epochs", "8", "40", "2⁻²", "80.0 %"),
        ("2", "b", "equal updates", "2", "10", "2⁻²", "50.0 %"),
        ("8", "a", "equal epochs", "8", "10", "2⁻²", "70.0 %"),
        ("8", "b", "equal updates", "8", "10", "2⁻²", "90.0 %"),
    ]


def test_without_a_second_budget_there_is_no_table_and_the_text_says_so() -> None:
    one = runs(("a", "epochs"), ("c", "epochs"))
    assert budget_table(best({("a", 2): 0.8}), one) is None
    said = " ".join(objection(best({("a", 2): 0.8}, edge="upper"), one))
    assert "no study was run with equal updates" in said
    assert "In 1 of 1 column the best η̃ is on the edge" in said


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ([("a", "updates of 8")],
         "every batch size had the same number of updates; no study was run with equal epochs"),
        ([("a", "epochs"), ("b", "updates of 8")], "a had equal epochs at every batch size, b"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be_compared_are_named(
    budgets: list[tuple[str, str]], said: str
) -> None:
    frame = runs(*budgets)
    frame.loc[frame["study"] == "b", "model"] = "alexnet"
    found = objection(best({("a", 2): 0.8}), frame)
    assert said in found[3]
    assert "so the objection is not put to the test" in found[3]


def test_without_a_best_cell_nothing_is_said_of_edges() -> None:
    assert not [line for line in objection(best({("a", 2): 0.8})[:0], BOTH) if "edge" in line]


def test_the_objection_is_answered_from_both_budgets() -> None:
    said = " ".join(objection(best(ACCURACIES), BOTH))
    assert "Shallue et al. (2018) found no evidence" in said
    assert "a on d is best on the test set at m = 2 (80.0 %) with equal epochs" in said
    assert "b on d is best on the test set at m = 8 (90.0 %) with equal updates" in said
    assert "In no column is the best η̃ on the edge" in said


@pytest.mark.parametrize(
    ("accuracies", "parts"),
    [
        # Seeds of the other m reach the best one's worst: the order is not settled.
        ({("a", 2): 0.8, ("a", 8): 0.795, ("b", 2): 0.5, ("b", 8): 0.9},
         ["a on d is best on the test set at m = 2 (80.0 %; seeds of m = 8 overlap) with equal",
          "b on d is best on the test set at m = 8 (90.0 %) with equal updates"]),
        # Of equals the smaller m is named.
        ({("a", 8): 0.8, ("a", 2): 0.8, ("b", 2): 0.5, ("b", 8): 0.9},
         ["a on d is best on the test set at m = 2 (80.0 %; seeds of m = 8 overlap)"]),
        # One m has no best cell: of one there is no best.
        ({("a", 8): 0.8, ("b", 2): 0.5, ("b", 8): 0.9}, ["a on d was run at m = 8 (80.0 %) with"]),
        # One study at chance, one without any accuracy.
        ({("a", 2): 0.11, ("a", 8): 0.1, ("b", 2): 0.5, ("b", 8): 0.9},
         ["a on d did not learn with equal epochs and b on d is best on the test set at m = 8"]),
        ({("b", 2): 0.5, ("b", 8): 0.9}, ["a on d did not learn with equal epochs"]),
    ],
)  # fmt: skip
def test_what_is_best_under_a_budget_is_as_sure_as_its_cells(
    accuracies: dict[tuple[str, int], float], parts: list[str]
) -> None:
    said = objection(best(accuracies), BOTH)[3]
    assert said.startswith("Under both budgets: ")
    assert all(part in said for part in parts)


def test_budgets_on_two_data_sets_name_them() -> None:
    one, other = runs(("a", "epochs")), runs(("a", "updates of 8")).assign(dataset="e")
    said = objection(best({("a", 2): 0.8, ("a", 8): 0.7}), pd.concat([one, other]))[3]
    assert "a on d had equal epochs at every batch size, a on e equal updates" in said


def test_epochs_that_differ_from_m_to_m_are_not_said_to_be_the_same() -> None:
    mixed = runs(("a", "epochs")).assign(epochs=[7, 10])
    said = objection(best({("a", 2): 0.8, ("a", 8): 0.7}), mixed)[3]
    assert "had other epochs at other batch sizes" in said
    assert "same number" not in said


def test_without_runs_on_this_grid_nothing_is_said_of_their_budgets() -> None:
    found = objection(best({("a", 2): 0.8})[:0], BOTH[:0])
    assert found[3] == (
        "No study here has m and η̃ as its grid, so the objection is not put to the test."
    )


@pytest.mark.parametrize(
    ("accuracies", "decides"),
    [
        ({("a", 2): 0.8, ("a", 8): 0.7}, True),
        ({("a", 2): 0.8}, False),  # one m
        ({("a", 2): 0.1, ("a", 8): 0.12}, False),  # at chance
        ({("a", 2): 0.8, ("b", 8): 0.7}, False),  # two studies of one m each
    ],
)
def test_which_m_is_best_is_decided_only_between_batch_sizes_that_learned(
    accuracies: dict[tuple[str, int], float], decides: bool
) -> None:
    said = objection(best(accuracies), BOTH)[2]
    assert said.startswith("What this data can decide" if decides else "No study here learned and")


def chosen(
    cells: dict[int, tuple[float, float]], validation: float | list[float] = 0.8
) -> pd.DataFrame:
    """Best cells: for each m its η̃ and its accuracy on the test set."""
    rows = [
        {"batch_size": m, "base_lr": base_lr, "accuracy": accuracy}
        for m, (base_lr, accuracy) in cells.items()
    ]
    return pd.DataFrame(rows).assign(validation_accuracy=validation)


ON_TEST = chosen({2: (0.25, 0.8), 8: (0.5, 0.7)})
START = "Chosen on the validation split instead of the test set"


@pytest.mark.parametrize(
    ("on_validation", "said"),
    [
        (chosen({2: (0.25, 0.8), 8: (0.5, 0.7)}), f"{START}, the best cell is the same."),
        # the same m with another η̃
        (chosen({2: (0.125, 0.78), 8: (0.5, 0.7)}, [0.8, 0.7]),
         (f"{START}, the best cell is m = 2 with η̃ = 2⁻³, 78.0 % on the test set. The best η̃ is "
         "another one at m = 2.")),
        # another m, though each m keeps its η̃
        (chosen({2: (0.25, 0.8), 8: (0.5, 0.7)}, [0.7, 0.75]),
         f"{START}, the best cell is m = 8 with η̃ = 2⁻¹, 70.0 % on the test set."),
        # the same best cell, while another m has another η̃
        (chosen({2: (0.25, 0.8), 8: (0.25, 0.6)}, [0.9, 0.7]),
         f"{START}, the best cell is the same. The best η̃ is another one at m = 8."),
        # a tie on the validation split: the smaller m, in whatever order the rows are
        (chosen({8: (0.5, 0.7), 2: (0.25, 0.8)}), f"{START}, the best cell is the same."),
        # one column was trained before there was a validation split
        (chosen({8: (0.5, 0.7)}),
         (f"{START} (which m = 8 alone has), the best cell is m = 8 with η̃ = 2⁻¹, 70.0 % on the "
         "test set.")),
        (chosen({2: (0.25, math.nan)}), None),
        (ON_TEST[:0], None),
    ],
)  # fmt: skip
def test_what_changes_when_chosen_on_the_validation_split(
    on_validation: pd.DataFrame, said: str | None
) -> None:
    assert validation_sentence(ON_TEST, on_validation) == said


def test_choosing_on_test_and_on_validation_side_by_side() -> None:
    on_test = best({("a", 2): 0.8})
    on_validation = best({("a", 2): 0.75}).assign(base_lr=0.125)
    (row,) = choice_table(on_test, on_validation).rows
    assert tuple(row) == ("2", "2⁻²", "2⁻³", "80.0 %", "75.0 %", "+5.0")
