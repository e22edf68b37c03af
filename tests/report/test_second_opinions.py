from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from smallbatch.report.second_opinions import budget_table, choice_table, objection

SETTINGS: dict[str, Any] = {
    "model": "resnet8", "norm": "none", "bn_batch_size": None, "augment": False,
    "weight_decay": 0.0, "milestones": "[0.5]", "lr_decay": 0.1, "warmup": 0.0,
    "precision": "float32",
}  # fmt: skip


def runs(*budgets: tuple[str, str]) -> pd.DataFrame:
    rows = [
        {"dataset": "d", "study": study, "batch_size": m, "budget": budget,
         "epochs": 8 if budget == "epochs" else m, "updates": 80 // m if budget == "epochs" else 10,
         **SETTINGS}
        for study, budget in budgets for m in (2, 8)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def best(accuracies: dict[tuple[str, int], float], edge: str = "") -> pd.DataFrame:
    rows = [
        {"dataset": "d", "study": study, "batch_size": m, "base_lr": 0.25, "accuracy": value,
         "grid_edge": edge}
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
        ([("a", "updates of 8")], "same number of updates; no study was run with equal epochs"),
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
    assert "a on d is best at m = 2 (80.0 %) with equal epochs" in said
    assert "b on d is best at m = 8 (90.0 %) with equal updates" in said
    assert "In no column is the best η̃ on the edge" in said


def test_choosing_on_test_and_on_validation_side_by_side() -> None:
    on_test = best({("a", 2): 0.8})
    on_validation = best({("a", 2): 0.75}).assign(base_lr=0.125)
    (row,) = choice_table(on_test, on_validation).rows
    assert tuple(row) == ("2", "2⁻²", "2⁻³", "80.0 %", "75.0 %", "+5.0")
