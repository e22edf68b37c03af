"""The race's rungs on accuracies that are known, and the search beyond the ends of its range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2

from smallbatch.analysis.race import Candidate
from smallbatch.pipeline.advise.bracket import Bracket
from smallbatch.pipeline.advise.racing import Rung, beyond, going_on, run_rung
from smallbatch.pipeline.advise.trials import Trial

Train = Callable[[Sequence[Candidate], int], "dict[Candidate, dict[int, Trial]] | None"]


def trial(accuracy: float | None) -> Trial:
    return Trial(accuracy is not None, (accuracy or 0.0,), 1.0, accuracy, accuracy, 100, "")


def brackets(edges: dict[int, float]) -> dict[int, Bracket]:
    return {
        m: Bracket(m, {edge: {0: trial(0.5)}, 2 * edge: {0: trial(None)}})
        for m, edge in edges.items()
    }


def training(best: dict[int, float], calls: list[int], allowed: int = 9) -> Train:
    """Accuracy falls by a tenth per octave from the best, a little with m, hardly with the seed."""

    def train(wanted: Sequence[Candidate], number: int) -> dict[Candidate, dict[int, Trial]] | None:
        calls.append(number)
        if number > allowed:
            return None
        return {
            it: {
                seed: trial(
                    0.8
                    - 0.1 * abs(log2(it.base_lr / best[it.batch_size]))
                    - 0.001 * it.batch_size
                    - 0.0001 * seed * (1 + it.base_lr)
                )
                for seed in range(3)
            }
            for it in wanted
        }

    return train


def field(m: int, octaves: Sequence[int]) -> list[Candidate]:
    return [Candidate(m, 2.0**k) for k in octaves]


def run(rung: Rung, *args: object) -> tuple[set[Candidate], list[int]]:
    tried: set[Candidate] = set()
    first, best, edges, allowed = args
    calls: list[int] = []
    run_rung(rung, first, training(best, calls, allowed), brackets(edges), tried, 0.1)  # type: ignore[arg-type]
    return tried, calls


def test_a_best_inside_its_range_ends_the_rung_at_once() -> None:
    rung = Rung(1, 0.1)
    tried, calls = run(rung, field(4, (-4, -5, -6)), {4: 2.0**-5}, {4: 2.0**-4}, 9)
    assert calls == [0]
    assert len(tried) == 3
    assert rung.ranked[0] == Candidate(4, 2.0**-5)


def test_each_batch_size_is_extended_at_the_first_rung_while_its_best_is_at_an_end() -> None:
    rung = Rung(1, 0.1)
    first = [*field(4, (-4, -5)), *field(16, (-6, -7))]
    tried, calls = run(rung, first, {4: 2.0**-7, 16: 2.0**-5}, {4: 2.0**-4, 16: 2.0**-2}, 9)
    assert calls == [0, 1, 2, 3]  # at 4 down to 2^-8; at 16 up to 2^-4
    assert {it.base_lr for it in tried if it.batch_size == 4} == {2.0**k for k in range(-8, -3)}
    assert {it.base_lr for it in tried if it.batch_size == 16} == {2.0**k for k in range(-7, -3)}
    assert rung.ranked[0] == Candidate(4, 2.0**-7)
    assert {it.batch_size for it in going_on(rung)} == {4, 16}


def test_later_only_the_leader_is_extended() -> None:
    rung = Rung(3, 0.3)
    first = [*field(4, (-7, -6)), *field(16, (-6,))]
    tried, _ = run(rung, first, {4: 2.0**-8, 16: 2.0**-9}, {4: 2.0**-4, 16: 2.0**-2}, 9)
    assert {it for it in tried if it.batch_size == 16} == set(field(16, (-6,)))
    assert Candidate(4, 2.0**-9) in tried


def test_nothing_is_tried_above_the_edge() -> None:
    rung = Rung(1, 0.1)
    edge = 2.0**-3.5
    tried, _ = run(rung, field(4, (-4, -5)), {4: 1.0}, {4: edge}, 9)
    assert max(it.base_lr for it in tried) == edge
    assert len(tried) == 3


def test_where_nothing_broke_the_race_goes_above_what_was_tried() -> None:
    tried: set[Candidate] = set()
    unbroken = {4: Bracket(4, {2.0**-4: {0: trial(0.5)}})}
    run_rung(Rung(1, 0.1), field(4, (-4, -5)), training({4: 2.0**-3}, []), unbroken, tried, 0.1)
    assert max(it.base_lr for it in tried) == 2.0**-2


def test_an_extension_without_budget_leaves_the_rung_as_it_was() -> None:
    rung = Rung(1, 0.1)
    _, calls = run(rung, field(4, (-4, -5)), {4: 2.0**-9}, {4: 2.0**-4}, 0)
    assert calls == [0, 1]
    assert len(rung.trials) == 2
    assert rung.rulings


def test_where_all_diverged_nothing_is_beyond() -> None:
    rung = Rung(1, 0.1)
    tried: set[Candidate] = set()

    def train(wanted: Sequence[Candidate], _number: int) -> dict[Candidate, dict[int, Trial]]:
        return {it: {seed: trial(None) for seed in range(3)} for it in wanted}

    run_rung(rung, field(4, (-4, -5)), train, brackets({4: 1.0}), tried, 0.1)
    assert rung.ranked == []
    assert beyond(rung, brackets({4: 1.0}), tried) == []
    assert going_on(rung) == []
