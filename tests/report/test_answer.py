from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from smallbatch.errors import UserError
from smallbatch.report.answer import (
    NAME,
    Card,
    answer_card,
    answer_lines,
    as_json,
    read_answers,
)
from tests.analysis.accuracies import LOST, Accuracies, grid, runs_of

if TYPE_CHECKING:
    from pathlib import Path

CLEAR = grid({2: 0.80, 8: 0.90, 32: 0.70}, sd=0.005)
TIED = grid({2: 0.90, 8: 0.90, 32: 0.70}, sd=0.005)


def card(accuracies: Accuracies, *, nothing: str = "", **settings: Any) -> Card:
    return answer_card(runs_of(accuracies, **settings), nothing=nothing)


def text(accuracies: Accuracies, **settings: Any) -> str:
    return " ".join(card(accuracies, **settings).lines)


def changed(accuracies: Accuracies, new: Accuracies) -> Accuracies:
    return {key: list(values) for key, values in {**accuracies, **new}.items()}


def test_a_clear_answer() -> None:
    found = card(CLEAR)
    assert found.title == "Batch size 8, learning rate 0.0312 (η̃ = 2⁻⁸)"
    assert found.sure == "clear"
    assert found.main == "With the η̃ tried, every other batch size is worse."
    accuracy, span, main, worse = found.lines
    values = CLEAR[8, 2**-8]
    assert accuracy == (
        f"Accuracy {100 * np.median(values):.1f} % (median of 3 seeds, {100 * min(values):.1f} … "
        f"{100 * max(values):.1f} %). Chosen on the test set itself, so it may be a little high."
    )
    assert main == found.main
    assert worse.startswith("Worse: m = 2 (by ")
    assert worse.count("points or more") == 1
    assert span == (
        "At m = 8 reliable from η̃ = 2⁻¹⁰ (η = 2⁻⁷, the lowest tried) to 2⁻⁶ (η = 2⁻³, the highest "
        "tried)."
    )


def test_the_bounds_that_are_written_are_below_what_was_seen() -> None:
    worse = card(CLEAR).lines[3]
    least = float(worse.split("(by ")[1].split(" ")[0])
    assert 0 < least < 10
    assert float(worse.rsplit("(", 1)[1].rstrip(").")) < 20


def test_an_open_answer() -> None:
    found = card(TIED)
    m, other = ("2", "8") if found.title.startswith("Batch size 2,") else ("8", "2")
    assert found.sure == "open"
    assert found.main == f"Not distinguishable from it: m = {other}."
    words = " ".join(found.lines)
    assert "Worse: m = 32 (by 1" in words
    assert f"no other is better than m = {m} by more than " in words
    assert "seeds would be needed to see a difference of 2 points." in text(
        grid({2: 0.9, 8: 0.9, 32: 0.9}, sd=0.02)
    )
    assert "every other batch size is worse" not in words
    assert "More than 100 seeds would" in text(grid({2: 0.6, 8: 0.6}, sd=0.15))


def test_seeds_that_are_enough_for_two_points_are_not_asked_for() -> None:
    assert "seeds would tell" not in text(grid({2: 0.9, 8: 0.9}, n=12, sd=0.003))


@pytest.mark.parametrize(
    ("n", "line"),
    [
        (1, "One seed decides nothing: set `seeds: 3` or more."),
        (2, "Two seeds decide nothing: set `seeds: 3` or more."),
    ],
)
def test_too_few_seeds(n: int, line: str) -> None:
    found = card(grid({2: 0.9, 8: 0.5}, n=n))
    assert (found.sure, found.main) == ("undecided", line)
    assert ("(one seed)" in found.lines[0]) == (n == 1)
    assert "decide" not in text(grid({2: 0.9, 8: 0.5}))


@pytest.mark.parametrize(
    ("moved", "number"), [(4, "No seed is"), (3, "One seed is"), (2, "Two seeds are")]
)
def test_too_few_seeds_in_common(moved: int, number: str) -> None:
    runs = runs_of(grid({2: 0.9, 8: 0.5}, n=4))
    runs.loc[runs["batch_size"] == 8, "seed"] += moved
    found = answer_card(runs)
    assert found.sure == "undecided"
    assert found.main == f"{number} common to all cells, and three are needed to compare them."


def test_nothing_to_compare() -> None:
    one = card({(4, 0.003): [0.5, 0.6, 0.7]})
    assert one.title == "Batch size 4, learning rate 0.012 (η̃ = 0.003)"
    assert one.sure == "undecided"
    assert one.lines == (
        "Accuracy 60.0 % (median of 3 seeds, 50.0 … 70.0 %).",
        "Only one batch size and learning rate was run: there is nothing to compare.",
        "Only one η̃ was tried at m = 4.",
    )
    assert card(grid({8: 0.9})).main == "Only m = 8 was run: no batch sizes are compared."
    lonely = card({(2, 0.1): [0.9] * 3, (4, 0.1): [LOST] * 3})
    assert lonely.sure == "undecided"
    assert lonely.main.endswith("at fewer than two batch sizes: none are compared.")


def test_columns_of_different_experiments_are_not_compared() -> None:
    runs = runs_of(CLEAR)
    runs.loc[runs["batch_size"] == 2, "epochs"] = 7
    found = answer_card(runs)
    assert found.sure == "undecided"
    assert found.main == "Its columns were trained with different epochs: they are not compared."


@pytest.mark.parametrize(
    ("base_lr", "line"),
    [
        (2**-10, "The best η̃ at m = 8 is the lowest tried: extend the grid."),
        (2**-6, "The best η̃ at m = 8 is the highest tried: extend the grid."),
    ],
)
def test_the_best_eta_on_the_edge(base_lr: float, line: str) -> None:
    found = card(changed(CLEAR, {(8, base_lr): [0.95, 0.951, 0.952]}))
    assert line in found.lines
    assert found.sure == "open"
    assert "extend the grid" not in text(CLEAR)


def test_a_loser_on_the_edge_may_not_be_one() -> None:
    found = card(changed(CLEAR, {(32, 2**-6): [0.75, 0.751, 0.752]}))
    assert found.sure == "open"
    line = "At m = 32 the best η̃ is at the end of those tried: another may do better."
    assert line in found.lines
    assert line not in card(CLEAR).lines


def test_a_diverged_seed_of_the_best_cell() -> None:
    found = card(changed(CLEAR, {(8, 2**-8): [0.95, 0.96, LOST]}))
    assert "1 of its 3 seeds diverged: try a smaller η̃." in found.lines
    assert found.sure == "open"
    assert "diverged … 96.0 %" in found.lines[0]
    assert "but not at" not in text(CLEAR)
    assert ", but not at 2⁻⁸." in " ".join(found.lines)


def test_a_batch_size_at_which_a_seed_of_every_cell_diverged() -> None:
    lost = {(32, 2.0**k): [LOST, 0.7, 0.7] for k in range(-10, -5)}
    found = card(changed(CLEAR, lost))
    assert "At m = 32 a seed diverged at every η̃: try smaller ones." in found.lines
    assert found.sure == "open"
    assert "every other batch size is worse" not in " ".join(found.lines)
    own = card(changed(CLEAR, {(8, 2.0**k): [LOST, 0.9, 0.9] for k in range(-10, -5)}))
    assert own.main.startswith("At m = 8 a seed diverged in every cell")
    assert "Not distinguishable from the best: m = 2." in own.lines
    assert "At m = 8 no η̃ is reliable." in own.lines


def test_the_highest_median_may_not_be_the_best_mean() -> None:
    found = card({(2, 0.1): [0.90] * 13 + [0.84] * 12, (4, 0.1): [0.89] * 13 + [0.892] * 12})
    assert found.sure == "open"
    assert found.main == (
        "By the mean over seeds another batch size is better, though m = 2 has the highest median."
    )
    assert "Not distinguishable from the best: m = 4." in found.lines
    assert "By the mean" not in text(CLEAR)


def test_a_choice_on_the_validation_split_says_so() -> None:
    validation = {key: [value - 0.05 for value in values] for key, values in CLEAR.items()}
    words = text(CLEAR, validation=validation)
    assert words.startswith("Chosen on the validation split; test accuracy ")
    assert "Chosen on the test set" not in words


def test_no_answer() -> None:
    lost = card({(2, 0.1): [LOST] * 3, (4, 0.1): [LOST, LOST, 0.9]})
    assert (lost.title, lost.sure) == ("No answer", "undecided")
    assert lost.lines == (
        "In no cell did more than half of the seeds train to the end: try smaller learning rates.",
    )
    chance = card(CLEAR, nothing="Nothing here.")
    assert (chance.title, chance.sure, len(chance.lines)) == ("No answer", "undecided", 1)
    assert chance.main == "Nothing here."


def test_no_finished_run_has_an_accuracy() -> None:
    runs = runs_of(CLEAR).assign(reported_accuracy=np.nan)
    found = answer_card(runs, nothing="No finished run has an accuracy.")
    assert (found.title, found.lines) == ("No answer", ("No finished run has an accuracy.",))


def test_where_a_seed_diverged_at_the_highest_rate_no_higher_one_is_advised() -> None:
    best = {(8, 2**-6): [0.99, 0.99, LOST]}
    found = card(changed(CLEAR, best))
    assert "η̃ = 2⁻⁶" in found.title
    assert found.lines[-1] == "1 of its 3 seeds diverged: try a smaller η̃."
    assert "extend the grid" not in " ".join(found.lines)


def test_the_choice_is_on_the_test_set_where_a_cell_has_an_accuracy_on_validation_alone() -> None:
    runs = runs_of(CLEAR, validation=CLEAR)
    runs.loc[runs["batch_size"] == 8, "reported_accuracy"] = np.nan
    found = answer_card(runs)
    assert found.batch_size == 2
    assert "Chosen on the test set itself" in found.lines[0]
    assert (found.worse, found.not_distinguishable) == ((32,), ())
    assert "diverged" not in " ".join(found.lines)
    runs = runs_of(grid({2: 0.5, 8: 0.9, 32: 0.9}, sd=0.02))
    runs.loc[runs["batch_size"] == 2, "reported_accuracy"] = np.nan
    assert "seeds would be needed" in " ".join(answer_card(runs).lines)


def test_a_line_for_each_study(tmp_path: Path) -> None:
    cards = [card(CLEAR), card({(2, 0.1): [LOST]})]
    (tmp_path / NAME).write_text(as_json(cards))
    assert read_answers(tmp_path / NAME).answers == tuple(cards)
    first, second = answer_lines(tmp_path)
    assert first == (
        "digits/mine: Batch size 8, learning rate 0.0312 (η̃ = 2⁻⁸). With the η̃ tried, every other "
        "batch size is worse."
    )
    assert second.startswith("digits/mine: No answer. In no cell")
    (tmp_path / NAME).write_text(as_json([]))
    assert answer_lines(tmp_path) == []


def _other(content: dict[str, Any], **new: Any) -> str:
    return json.dumps({"answers": [{**content["answers"][0], **new}]})


@pytest.mark.parametrize("new", [{"sure": "certain"}, {"title": 3}, {"more": ""}])
def test_a_damaged_file_is_refused(tmp_path: Path, new: dict[str, Any]) -> None:
    content = json.loads(as_json([card(CLEAR)]))
    (tmp_path / NAME).write_text(_other(content, **new))
    with pytest.raises(UserError, match=r"answers\.json: damaged.*`smallbatch report` writes it"):
        answer_lines(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`smallbatch report` writes it"):
        answer_lines(tmp_path)


def test_no_bound_is_given_beyond_a_whole_accuracy() -> None:
    """Nothing is better than 99 % by 5 points, whatever the noise of other batch sizes leaves."""
    near = {(2, 0.1): [0.99, 0.99, 0.99], (8, 0.1): [0.9, 0.99, 0.7], (32, 0.1): [0.98, 0.9, 0.8]}
    words = text(near)
    assert "Not distinguishable from it: m = 8" in words
    assert "by more than" not in words
    assert "seeds would be needed" not in words


def test_other_learning_rates_that_may_be_as_good_are_named() -> None:
    flat = {(m, 2.0**-k): [0.8 - 0.1 * (m == 8) + 0.001 * seed for seed in range(3)]
            for m in (2, 8) for k in (4, 6)}  # fmt: skip
    flat |= {(m, 2.0**-8): [0.5, 0.501, 0.502] for m in (2, 8)}
    words = text(flat)
    assert words.startswith("Accuracy 80.1 %")
    other = "2⁻⁴" if "η̃ = 2⁻⁶)" in card(flat).title else "2⁻⁶"
    assert f"At m = 2 η̃ = {other} may be as good." in words


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ([LOST, 0.8, 0.8], "at the next a seed diverges: a lower one is safer."),
        ([0.2, 0.8, 0.8], "at the next a seed falls behind: a lower one is safer."),
        ([0.8, 0.81, 0.8], None),
    ],
)
def test_the_last_reliable_learning_rate_is_said_to_be_the_last(
    above: list[float], said: str | None
) -> None:
    found = card({(2, 0.1): [0.7] * 3, (2, 0.2): [0.9] * 3, (2, 0.4): above, (8, 0.1): [0.5] * 3})
    assert "η̃ = 0.2" in found.title
    warned = [line for line in found.lines if "highest that is reliable" in line]
    assert warned == ([f"This η̃ is the highest that is reliable; {said}"] if said else [])


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (100, "Chosen on the validation split of 100 images, too few to know an accuracy"),
        (20_000, "Chosen on the validation split; test accuracy"),
    ],
)  # fmt: skip
def test_a_small_validation_split_is_told(images: int, said: str) -> None:
    accuracies = {(2, 0.1): [0.7] * 3, (8, 0.1): [0.6] * 3}
    runs = runs_of(accuracies, accuracies, n_validation=images)
    assert answer_card(runs).lines[0].startswith(said)


def test_what_puts_the_accuracies_in_doubt_is_on_the_card() -> None:
    found = answer_card(runs_of(CLEAR), doubts=["Running statistics lag."])
    assert "Running statistics lag." in found.lines
    assert found.sure == "open"
