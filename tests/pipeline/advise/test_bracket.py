"""The search for the edge, on models of training whose edge is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2

import pytest

from smallbatch.config.params import parse_study
from smallbatch.pipeline.advise.bracket import (
    Bracket,
    first_start,
    next_rates,
    search,
    start_after,
)
from smallbatch.pipeline.advise.trials import Trial, Trials


def trial(finished: bool, loss: float) -> Trial:
    return Trial(finished, (0.5,), loss if finished else None, 0.5, 0.5, 100, "")


def trainer(
    edge: float, fastest: float, calls: list[list[float]] | None = None, seeds: int = 3
) -> Callable[[int, Sequence[float]], Trials]:
    """Diverges above the edge, with the first seed a third of an octave earlier."""

    def train(_number: int, rates: Sequence[float]) -> Trials:
        if calls is not None:
            calls.append(list(rates))
        return {
            rate: {
                seed: trial(rate <= edge * (0.8 if seed == 0 else 1), abs(log2(rate / fastest)))
                for seed in range(seeds)
            }
            for rate in rates
        }

    return train


@pytest.mark.parametrize("start", range(-20, 8))
def test_the_edge_is_found_to_half_an_octave(start: int) -> None:
    edge = 2.0**-5 / 0.8  # of the first seed: 2^-5 survives, 2^-4.5 does not
    found = search(4, start, trainer(edge, fastest=2.0**-6), passes=20)
    assert found is not None
    assert found.edge == 2.0**-5
    assert found.breaks == 2.0**-4.5
    assert found.survived(2.0**-4.5) in (0, 2)
    assert found.fastest == 2.0**-6
    assert found.candidates == [2.0**-5, 2.0**-6, 2.0**-7, 2.0**-8]


def test_the_half_octave_is_the_edge_where_it_survives() -> None:
    found = search(4, -8, trainer(2.0**-4.4 / 0.8, fastest=2.0**-5))
    assert found is not None
    assert found.edge == 2.0**-4.5
    assert found.breaks == 2.0**-4
    assert found.candidates[0] == 2.0**-4.5  # below an octave above the fastest


def test_without_an_edge_the_search_ends_three_octaves_above_the_fastest() -> None:
    calls: list[list[float]] = []
    found = search(4, -8, trainer(2.0**60, fastest=2.0**-7, calls=calls))
    assert found is not None
    assert found.breaks is None
    assert 2.0**-4 <= found.tried[-1] < 2.0**-2
    assert found.edge == found.tried[-1]
    trained = [rate for rates in calls for rate in rates]
    assert len(trained) == len(set(trained))


def test_where_all_diverge_there_is_no_candidate() -> None:
    found = search(4, -8, trainer(2.0**-60, fastest=2.0**-7), passes=3)
    assert found is not None
    assert found.edge is None
    assert found.fastest is None
    assert found.candidates == []


def test_a_hole_below_a_survivor_is_the_edge() -> None:
    trials = {
        2.0**-6: {0: trial(True, 1.0)},
        2.0**-5: {0: trial(False, 1.0)},
        2.0**-4: {0: trial(True, 0.5)},
    }
    found = Bracket(4, trials)
    assert found.edge == 2.0**-6
    assert found.breaks == 2.0**-5
    assert found.fastest == 2.0**-6


def test_no_budget_for_the_first_pass_finds_nothing_and_for_a_later_one_what_there_is() -> None:
    assert search(4, -8, lambda _number, _rates: None) is None
    train = trainer(2.0**60, fastest=2.0**-30)
    found = search(4, -8, lambda number, rates: None if number else train(number, rates))
    assert found is not None
    assert found.tried == [2.0**k for k in (-9, -8, -7, -6)]


def test_rates_stay_within_what_float32_holds() -> None:
    train = trainer(2.0**200, fastest=2.0**200)
    found = search(4, 10, train, passes=50)
    assert found is not None
    assert found.tried[-1] <= 2.0**20
    down = search(4, -30, trainer(0.0, fastest=1.0), passes=50)
    assert down is not None
    assert down.tried[0] >= 2.0**-40


def test_the_first_pass_is_four_octaves_around_the_start() -> None:
    assert next_rates(None, -8) == [2.0**-9, 2.0**-8, 2.0**-7, 2.0**-6]


def study(**settings: object) -> object:
    return parse_study({"model": "resnet8", "epochs": 2, "weight_decay": 0.0, **settings}, "test")


@pytest.mark.parametrize(
    ("settings", "m", "start"),
    [
        ({}, 4, -8),
        ({}, 64, -10),
        ({"optimizer": "momentum", "momentum": 0.9}, 4, -11),
        ({"optimizer": "adamw"}, 64, -10),
        ({"optimizer": "adamw", "pretrained": "weights.safetensors"}, 4, -13),
    ],
)
def test_a_search_begins_at_a_usual_learning_rate(
    settings: dict[str, object], m: int, start: int
) -> None:
    assert first_start(study(**settings), m) == start  # type: ignore[arg-type]


def test_a_search_goes_on_from_that_of_a_smaller_batch_size() -> None:
    found = search(4, -8, trainer(2.0**-4, fastest=2.0**-6))
    assert found is not None
    assert start_after(found, study(), 64) == -8  # type: ignore[arg-type]
    assert start_after(found, study(optimizer="adamw"), 64) == -5  # type: ignore[arg-type]
