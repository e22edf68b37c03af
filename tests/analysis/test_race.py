"""A race among candidates: by hand, and what holds whatever the accuracies are."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from smallbatch.analysis.race import Candidate, Progress, Rule, decide, finish, race

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from smallbatch.analysis.race import Ruling, Standing

CHANCE = 0.1
LR = 2.0**-8
A, B, C, D = (Candidate(m, LR) for m in (2, 8, 32, 128))


def at(accuracies: Mapping[Candidate, Sequence[float | None]], images: int = 100) -> Standing:
    return {
        it: {seed: Progress(value, images) for seed, value in enumerate(values)}
        for it, values in accuracies.items()
    }


def whys(rulings: Sequence[Ruling]) -> dict[Candidate, str]:
    return {it.candidate: it.why for it in rulings}


def level(mean: float) -> list[float | None]:
    """Accuracies whose difference from another level is the same at every seed."""
    return [mean - 0.02, mean, mean + 0.02]


def test_the_error_is_shrunk_towards_the_noise_of_the_table() -> None:
    table = {A: [0.50, 0.52, 0.54], B: [0.47, 0.53, 0.50], C: [0.51, 0.47, 0.49]}
    # By hand: residuals of the 3 × 3 table, with 2 · 2 degrees of freedom, of which the pair's own
    # two are none of the table's.
    rows = [statistics.fmean(values) for values in table.values()]
    columns = [statistics.fmean(values) for values in zip(*table.values(), strict=True)]
    grand = statistics.fmean(rows)
    squares = [
        (value - row - column + grand) ** 2
        for values, row in zip(table.values(), rows, strict=True)
        for value, column in zip(values, columns, strict=True)
    ]
    sigma2, prior = sum(squares) / 4, 4 - 2
    expected = {A: 0.0}
    for it in (B, C):
        d = [a - b for a, b in zip(table[A], table[it], strict=True)]
        variance = (prior * 2 * sigma2 + 2 * statistics.variance(d)) / (prior + 2)
        expected[it] = math.sqrt(variance / 3)
    rulings = decide(at(table), 0.3, CHANCE)
    assert [it.candidate for it in rulings] == [A, B, C]
    assert [it.behind for it in rulings] == pytest.approx([0, 0.02, 0.03])
    assert [it.accuracy for it in rulings] == pytest.approx([0.52, 0.5, 0.49])
    assert {it.candidate: it.error for it in rulings[1:]} == pytest.approx(
        {it: expected[it] for it in (B, C)}
    )
    assert expected[C] < 0.03
    assert whys(rulings) == {A: "among the best", B: "among the best", C: "behind"}


def test_where_one_batch_size_is_left_all_its_candidates_tell_the_noise() -> None:
    """The first two pairs agree, and so would be sure of themselves; the third does not."""
    cells = [Candidate(8, LR / 2**k) for k in range(4)]
    table = dict(
        zip(
            cells,
            ([0.50, 0.53, 0.56], [0.50, 0.53, 0.56], [0.49, 0.52, 0.55], [0.54, 0.51, 0.48]),
            strict=True,
        )
    )
    # What is left of the table without means of rows and columns has 3 · 2 degrees of freedom; four
    # of them, as many as count at most, are not the pair's own, whose variance is 0.
    y = np.array(list(table.values()))
    rows, columns = np.eye(4) - 1 / 4, np.eye(3) - 1 / 3
    sigma2 = float(np.sum((rows @ y @ columns) ** 2)) / 6
    rulings = decide(at(table), 0.3, CHANCE)
    (third,) = (it for it in rulings if it.candidate == cells[2])
    assert third.error == pytest.approx(math.sqrt(4 * 2 * sigma2 / (4 + 2) / 3))
    assert third.why == "within the error"


def test_a_pair_that_happens_to_agree_is_not_sure() -> None:
    """Its own three differences are all 1 point; the others tell that one run varies by several."""
    table = {
        A: [0.50, 0.56, 0.53],
        B: [0.55, 0.48, 0.53],
        C: [0.49, 0.55, 0.52],
        D: [0.46, 0.50, 0.55],
    }
    assert statistics.stdev([0.50 - 0.49, 0.56 - 0.55, 0.53 - 0.52]) < 1e-9
    assert whys(decide(at(table), 0.3, CHANCE))[C] == "within the error"


def test_two_go_on_however_far_the_second_is_behind() -> None:
    table = {A: level(0.9), B: level(0.3), C: level(0.2)}
    assert whys(decide(at(table), 0.3, CHANCE)) == {
        A: "among the best",
        B: "among the best",
        C: "behind",
    }


@pytest.mark.parametrize(("share", "last"), [(0.1, "best of its batch size"), (0.3, "behind")])
def test_no_batch_size_is_dropped_before_the_second_rung(share: float, last: str) -> None:
    other, worse = Candidate(128, 2 * LR), Candidate(128, 4 * LR)
    table = {A: level(0.9), B: level(0.8), other: level(0.5), D: level(0.4), worse: [None] * 3}
    assert whys(decide(at(table), share, CHANCE)) == {
        A: "among the best",
        B: "among the best",
        other: last,
        D: "behind",
        worse: "diverged",
    }


def test_one_diverged_seed_stops_a_candidate_which_comes_last() -> None:
    table = {C: [0.9, 0.9, None], D: [None] * 3, B: level(0.4), A: level(0.5)}
    rulings = decide(at(table), 0.1, CHANCE)
    assert [it.candidate for it in rulings] == [A, B, C, D]
    assert [it.goes_on for it in rulings] == [True, True, False, False]
    assert [it.why for it in rulings[2:]] == ["diverged"] * 2
    assert all(math.isnan(it.accuracy) and math.isnan(it.behind) for it in rulings[2:])
    assert not any(it.goes_on for it in decide(at({A: [None, 0.5], B: [None] * 2}), 0.1, CHANCE))


def test_equals_go_on_together_by_batch_size_then_learning_rate() -> None:
    low = Candidate(8, LR / 2)
    # 0.1 + 0.2 + 0.3 in another order has another last bit.
    table = {C: [0.1, 0.2, 0.3], B: [0.1, 0.3, 0.2], low: [0.2, 0.1, 0.3], A: [0.3, 0.2, 0.1]}
    assert sum(table[A]) < sum(table[C])
    standing = at(table)
    rulings = decide(standing, 0.3, CHANCE)
    assert [it.candidate for it in rulings] == [A, low, B, C]
    assert all(it.goes_on for it in rulings)
    assert finish(standing, CHANCE).tied == (A, low, B, C)
    # Without any noise, too, and with a last bit that differs at every seed.
    bits = at({A: [0.1 + 0.2] * 2, B: [0.1 + 0.2] * 2, C: [0.3] * 2})
    assert whys(decide(bits, 0.3, CHANCE))[C] == "within the error"
    assert finish(bits, CHANCE).tied == (A, B, C)
    same = at({it: level(0.5) for it in table})
    assert all(it.goes_on for it in decide(same, 0.3, CHANCE))
    assert finish(same, CHANCE).tied == (A, low, B, C)


def test_a_share_of_all_that_came_goes_on_if_the_rule_says_so() -> None:
    table = {A: level(0.9), B: level(0.8), C: level(0.7), D: level(0.6)} | {
        Candidate(512, LR): [None] * 3
    }
    half = decide(at(table), 0.3, CHANCE, Rule(quota=0.5))
    assert [it.candidate for it in half if it.goes_on] == [A, B, C]  # of five, rounded up
    more = decide(at(table), 0.3, CHANCE, Rule(least=4))
    assert [it.candidate for it in more if it.goes_on] == [A, B, C, D]


@pytest.mark.parametrize("quantile", [0.98, 0.99])
def test_tied_are_those_whose_t_interval_reaches_nought(quantile: float) -> None:
    """Of one batch size and two candidates nothing but their own differences is known."""
    rival = Candidate(2, LR / 2)
    spread = 0.02
    mean = stats.t(2).ppf(quantile) * spread / math.sqrt(3)  # ALPHA is 1.5 %, on one side
    d = [mean - spread, mean, mean + spread]
    found = finish(at({A: [0.5] * 3, rival: [0.5 - it for it in d]}), CHANCE)
    assert found.winner == A
    assert found.tied == ((A, rival) if quantile == 0.98 else (A,))


def test_the_end_without_a_winner_and_with_a_single_candidate() -> None:
    assert finish(at({A: [None, 0.5], B: [None, None]}), CHANCE).winner is None
    assert finish({}, CHANCE).tied == ()
    alone = at({A: [0.5, 0.4]})
    assert whys(decide(alone, 0.1, CHANCE)) == {A: "among the best"}
    assert finish(alone, CHANCE).tied == (A,)
    assert decide({}, 0.1, CHANCE) == ()


@pytest.mark.parametrize(
    ("standing", "words"),
    [
        (at({A: [0.5, math.nan]}), "accuracy nan"),
        (at({A: [0.5, 50.0]}), r"accuracy 50\.0"),
        (at({A: [0.5, 0.4], B: [0.5, 0.4, 0.3]}), r"seeds \[0, 1, 2\], another has \[0, 1\]"),
        (at({A: [0.5], B: [0.4]}), r"two seeds or more, found \[0\]"),
    ],
)
def test_what_cannot_be_compared_is_an_error(standing: Standing, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decide(standing, 0.1, CHANCE)
    with pytest.raises(ValueError, match=words):
        finish(standing, CHANCE)


def test_what_holds_of_any_accuracies() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        batch_sizes = rng.choice([2, 8, 32, 128, 512], rng.integers(1, 6), replace=False)
        cells = [Candidate(int(m), 2.0**-k) for m in batch_sizes for k in rng.choice(9, 3, False)]
        means = rng.uniform(0.1, 0.6, len(cells))
        table: dict[Candidate, list[float | None]] = {
            it: [None if rng.random() < 0.1 else float(mean + rng.normal(0, 0.02)) for _ in "123"]
            for it, mean in zip(cells, means, strict=True)
        }
        table = {it: [v and min(max(v, 0), 1) for v in values] for it, values in table.items()}
        usable = {it: sum(v or 0 for v in vs) for it, vs in table.items() if None not in vs}
        for share in (0.1, 0.3):
            rulings = decide(at(table), share, CHANCE)
            on = {it.candidate for it in rulings if it.goes_on}
            assert {it.candidate for it in rulings} == set(cells)
            assert on <= set(usable)
            assert len(on) >= min(2, len(usable))
            # Nobody goes on past one that is better, but for its batch size.
            by_rank = [it for it in rulings if it.why != "best of its batch size"]
            assert [it.accuracy for it in by_rank if it.goes_on] == sorted(
                (it.accuracy for it in by_rank if it.goes_on), reverse=True
            )
            if share == 0.1:
                for m in {it.batch_size for it in usable}:
                    best = max((it for it in usable if it.batch_size == m), key=usable.__getitem__)
                    assert best in on
            shuffled = at(dict(reversed(table.items())))
            assert str(decide(shuffled, share, CHANCE)) == str(rulings)


def test_a_race_trains_on_what_goes_on_and_counts_every_image() -> None:
    """B is best at first, A at last; D diverges between the rungs, C falls back."""
    path = {
        A: {0.1: 0.30, 0.3: 0.40, 1.0: 0.70},
        B: {0.1: 0.35, 0.3: 0.45, 1.0: 0.60},
        C: {0.1: 0.20, 0.3: 0.21, 1.0: 0.99},
        D: {0.1: 0.15, 0.3: None, 1.0: None},
    }
    seen: list[tuple[float, list[Candidate]]] = []

    def train(candidates: Sequence[Candidate], share: float) -> Standing:
        seen.append((share, list(candidates)))
        return {
            it: {seed: Progress(path[it][share], round(1000 * share)) for seed in (3, 5)}
            if path[it][share] is not None
            else {3: Progress(0.2, 300), 5: Progress(None, 170)}
            for it in candidates
        }

    found = race([A, B, C, D], train, CHANCE)
    assert [(share, sorted(these)) for share, these in seen] == [
        (0.1, [A, B, C, D]),
        (0.3, [A, B, C, D]),  # at the first rung every batch size keeps its best
        (1.0, [A, B]),
    ]
    assert found.finish.winner == A
    assert found.finish.tied == (A,)
    assert [whys(rung)[D] for rung in found.rulings] == ["best of its batch size", "diverged"]
    assert found.images == 2 * 1000 + 2 * 1000 + 2 * 300 + (300 + 170)


def test_a_race_that_all_diverged_in() -> None:
    def train(candidates: Sequence[Candidate], share: float) -> Standing:
        return {it: {0: Progress(None, 7), 1: Progress(None, 9)} for it in candidates}

    found = race([A, B], train, CHANCE)
    assert found.finish.winner is None
    assert found.images == 2 * (7 + 9)
