"""From trials to the answer: who is recommended, which are tied, what is said to limit it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from smallbatch.analysis.advice import Advice, Diagnostics
from smallbatch.analysis.race import Candidate, decide
from smallbatch.config.params import parse_dataset, parse_study
from smallbatch.data.prepared import Meta
from smallbatch.pipeline.advise.bracket import Bracket
from smallbatch.pipeline.advise.calibrate import Speed
from smallbatch.pipeline.advise.conclude import best_trial, conclude
from smallbatch.pipeline.advise.racing import Rung, standing
from smallbatch.pipeline.advise.request import Request, parse_budget
from smallbatch.pipeline.advise.session import Session
from smallbatch.pipeline.advise.size import Size
from smallbatch.pipeline.advise.trials import Trial
from smallbatch.report.advice_words import headline

CHANCE = 0.1
A, B, C = Candidate(4, 2.0**-5), Candidate(16, 2.0**-6), Candidate(4, 2.0**-6)


def trial(validation: float | None, test: float | None = None) -> Trial:
    finished = validation is not None
    loss = 1.0 if finished else None
    curve = (0.2, validation) if validation is not None else (0.2,)
    return Trial(finished, curve, loss, validation, test or validation, 1000, "run")


def trials(*values: float | None) -> dict[int, Trial]:
    return {seed: trial(value) for seed, value in enumerate(values)}


def rung(epochs: int, share: float, found: dict[Candidate, dict[int, Trial]]) -> Rung:
    return Rung(epochs, share, found, decide(standing(found), share, CHANCE))


def brackets() -> dict[int, Bracket]:
    return {
        4: Bracket(4, {2.0**k: trials(0.3, 0.3, None if k > -4 else 0.3) for k in range(-7, -2)}),
        16: Bracket(16, {2.0**k: trials(0.3, 0.3, 0.3) for k in range(-8, -4)}),
    }


def session(**changes: Any) -> Session:
    study = parse_study({"model": "resnet8", "epochs": 2, "weight_decay": 0.0}, "test")
    dataset = parse_dataset({"name": "digits", "source": "digits"}, "test")
    short = rung(3, 0.3, {A: trials(0.70, 0.71, 0.69), B: trials(0.70, 0.71, 0.695),
                          C: trials(0.5, 0.52, 0.51)})  # fmt: skip
    last = rung(10, 1.0, {A: trials(0.80, 0.81, 0.79), B: trials(0.79, 0.81, 0.785)})
    found: dict[str, Any] = {
        "request": Request(dataset, study, parse_budget("20m")),
        "size": Size(1000, 400, 10),
        "speeds": {4: Speed(2000.0, 1000.0, True, 100), 16: Speed(3000.0, 3000.0, True, 200)},
        "chance": CHANCE,
        "brackets": brackets(),
        "rungs": [short, last],
        "final": {},
    }
    return Session(**{**found, **changes})


def fresh(one: list[float], other: list[float]) -> dict[Candidate, dict[int, Trial]]:
    return {
        cell: {3 + i: trial(0.8, value) for i, value in enumerate(values)}
        for cell, values in ((A, one), (B, other))
    }


def advice(found: Session, n_test: int = 400) -> Advice:
    meta = Meta("digits", "digits", tuple("0123456789"), 1, 8, 8, (0.5,), (0.2,),
                {"train": 750, "validation": 250, "test": n_test}, "0" * 64)  # fmt: skip
    return conclude(
        found, meta, available=1437, seconds=100.0, images=12345, device="cpu", processor="none",
        code=lambda m, lr: f"m={m} lr={lr}", diagnostics=Diagnostics(),
    )  # fmt: skip


def test_the_final_interval_is_that_of_a_paired_t_test() -> None:
    one, other = [0.80, 0.82, 0.81, 0.83, 0.79], [0.79, 0.80, 0.81, 0.80, 0.79]
    found = advice(session(final=fresh(one, other)))
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found.final is not None
    assert found.final.difference == pytest.approx(np.mean(one) - np.mean(other))
    assert (found.final.low, found.final.high) == pytest.approx((expected.low, expected.high))
    assert found.final.seeds == (3, 4, 5, 6, 7)
    assert found.recommended is not None
    assert found.recommended.accuracy == pytest.approx(np.mean(one))
    assert (found.recommended.batch_size, found.recommended.base_lr) == (4, 2.0**-5)
    assert found.recommended.lr == 4 * 2.0**-5
    assert found.recommended.code == f"m=4 lr={4 * 2.0**-5}"
    assert found.recommended.on == "final"


def test_a_rival_that_is_clearly_worse_is_not_tied_and_one_that_is_open_is() -> None:
    worse = advice(session(final=fresh([0.80, 0.82, 0.81], [0.60, 0.61, 0.615])))
    assert worse.tied_batch_sizes == (4,)
    equal = advice(session(final=fresh([0.80, 0.82, 0.81], [0.82, 0.80, 0.81])))
    assert equal.tied_batch_sizes == (4, 16)
    assert any("cannot be told apart by these" in it for it in equal.warnings)
    assert not any("cannot be told apart" in it for it in worse.warnings)


def test_the_final_overturns_the_race_only_with_its_whole_interval() -> None:
    over = advice(session(final=fresh([0.60, 0.61, 0.615], [0.80, 0.82, 0.81])))
    assert over.recommended is not None
    assert over.recommended.batch_size == 16
    assert over.final is not None
    assert over.final.overturned
    assert over.final.rival == (4, 2.0**-5)
    assert over.final.low is not None
    assert over.final.low > 0
    assert over.tied_batch_sizes == (16,)
    slightly = advice(session(final=fresh([0.80, 0.81, 0.79], [0.81, 0.80, 0.81])))
    assert slightly.recommended is not None
    assert slightly.recommended.batch_size == 4


def test_by_target_time_the_fastest_of_the_tied_is_recommended() -> None:
    found = session()
    found.request = replace(found.request, target="time")
    told = advice(found).recommended
    assert told is not None
    assert told.batch_size == 16  # 3,000 images per second
    assert told.on == "race"


def test_candidates_tell_how_far_they_came_and_why_they_stopped() -> None:
    found = advice(session())
    assert [(it.batch_size, it.base_lr, it.fate) for it in found.raced] == [
        (4, 2.0**-5, "finished"), (16, 2.0**-6, "finished"), (4, 2.0**-6, "behind"),
    ]  # fmt: skip
    assert [stage.share for stage in found.raced[0].stages] == [0.3, 1.0]
    assert found.raced[0].stages[1].accuracy == pytest.approx(0.8)
    assert found.raced[0].stages[1].error == pytest.approx(stats.sem([0.80, 0.81, 0.79]))
    assert found.raced[0].seconds == pytest.approx(750 * 10 / 1000)
    assert found.raced[0].curve == pytest.approx((0.2, 0.8))


def test_ranges_have_edge_break_and_headroom() -> None:
    four, sixteen = advice(session()).ranges
    assert (four.edge, four.breaks, four.best) == (2.0**-4, 2.0**-3, 2.0**-5)
    assert four.headroom == 1
    assert four.survived[-1] == (2.0**-3, 2)
    assert four.seeds == 3
    assert four.updates == 1000 // 4
    assert (sixteen.edge, sixteen.breaks, sixteen.headroom) == (2.0**-5, None, 1)


def test_what_breaks_in_the_race_is_in_the_range() -> None:
    high = Candidate(16, 2.0**-5)
    found = session()
    found.rungs[0].trials[high] = trials(0.3, None, 0.3)
    found.rungs[0].trials[Candidate(16, 2.0**-4)] = trials(0.3, 0.3, 0.3)
    sixteen = advice(found).ranges[1]
    assert sixteen.survived[-2:] == ((2.0**-5, 2), (2.0**-4, 3))
    assert (sixteen.edge, sixteen.breaks) == (2.0**-6, 2.0**-5)


def test_the_updates_of_a_stable_range_are_the_fewest_that_one_of_it_was_tried_for() -> None:
    found = session()
    short = {seed: replace(it, images=40) for seed, it in trials(0.3, 0.3, 0.3).items()}
    found.rungs[0].trials[Candidate(4, 2.0**-9)] = short
    four = advice(found).ranges[0]
    assert (four.lowest, four.updates) == (2.0**-9, 10)
    told = " ".join(advice(found).warnings)
    assert "with few updates at m = 4 (10 updates): later ones" in told
    assert "16 (" not in told


def test_of_several_trials_of_a_rate_the_longest_counts() -> None:
    found = session()
    found.rungs[0].trials[A] = {
        seed: replace(it, images=40) for seed, it in found.rungs[0].trials[A].items()
    }
    assert advice(found).ranges[0].updates == 1000 // 4


def test_nobody_is_said_to_be_stopped_at_a_rung_where_none_was() -> None:
    short = rung(3, 0.3, {A: trials(0.70, 0.71, 0.69), B: trials(0.70, 0.71, 0.695)})
    last = rung(10, 1.0, {A: trials(0.80, 0.81, 0.79), B: trials(0.79, 0.81, 0.785)})
    told = " ".join(advice(session(rungs=[short, last])).warnings)
    assert "The order changed" in told
    assert "was stopped" not in told


def test_a_cell_for_which_time_ran_out_is_not_known_to_be_worse() -> None:
    found = session()
    found.rungs[1] = rung(10, 1.0, {A: trials(0.80, 0.81, 0.79)})
    told = advice(found)
    assert "before 1 cell of m = 16 could be trained to the end: not known" in told.warnings[0]
    assert {it.fate for it in told.raced if it.batch_size == 16} == {"not trained on"}


def test_who_cannot_be_told_from_the_overturned_races_winner_is_tied() -> None:
    """Of the last rung B is second; the final takes it over A, and says nothing of C."""
    last = rung(10, 1.0, {A: trials(0.80, 0.81, 0.79), B: trials(0.79, 0.81, 0.785),
                          C: trials(0.78, 0.815, 0.788)})  # fmt: skip
    one, other = [0.70, 0.71, 0.70, 0.71, 0.70], [0.80, 0.80, 0.80, 0.80, 0.80]
    found = advice(session(rungs=[last], final=fresh(one, other)))
    assert found.final is not None
    assert found.final.overturned
    assert {Candidate(it.batch_size, it.base_lr) for it in found.raced if it.tied} == {B, C}


def test_if_all_diverge_nothing_is_recommended() -> None:
    rungs = [rung(3, 0.3, {A: trials(None, 0.5, 0.5), B: trials(None, None, None)})]
    found = advice(session(rungs=rungs))
    assert found.recommended is None
    assert found.warnings[0] == "Every candidate diverged with one seed or more."
    assert {it.fate for it in found.raced} == {"diverged"}
    assert found.raced[0].stages[0].accuracy is None


def test_without_a_race_the_bracket_answers_and_says_so() -> None:
    found = advice(session(rungs=[], in_time=False))
    assert found.recommended is not None
    assert found.recommended.on == "bracket"
    assert any("before the race" in it for it in found.warnings)
    assert best_trial(session(rungs=[])) is None


def test_a_race_that_ended_early_says_where() -> None:
    found = session()
    cut = advice(session(rungs=found.rungs[:1], in_time=False))
    assert cut.recommended is not None
    assert cut.recommended.on == "race"
    assert any("ended the race at 30%" in it for it in cut.warnings)
    assert {it.fate for it in cut.raced} == {"not trained on", "behind"}


def test_batch_sizes_without_budget_are_told() -> None:
    found = session(rungs=[rung(10, 1.0, {A: trials(0.8, 0.8, 0.8), C: trials(0.7, 0.7, 0.7)})])
    assert "The budget had no room to race m = 16." in advice(found).warnings
    found.brackets = {4: found.brackets[4]}
    assert "The budget ended before m = 16." in advice(found).warnings


def test_chance_is_told_as_nothing_learned() -> None:
    guessing = [rung(10, 1.0, {A: trials(0.1, 0.11, 0.1), B: trials(0.1, 0.1, 0.09)})]
    found = advice(session(rungs=guessing))
    assert found.warnings[0].startswith("Nothing was learned")
    assert headline(found).startswith("No answer: nothing was learned")
    assert headline(advice(session())).startswith("Train with batch size m = 4")
    assert not any("Nothing was" in it for it in advice(session()).warnings)


def test_a_best_at_an_end_of_what_was_raced_is_told() -> None:
    top = [rung(10, 1.0, {A: trials(0.8, 0.81, 0.8), C: trials(0.7, 0.7, 0.71)})]
    assert any("highest that was raced" in it for it in advice(session(rungs=top)).warnings)
    at_edge = session(rungs=top)
    at_edge.brackets[4] = Bracket(4, {2.0**-6: trials(0.3, 0.3, 0.3),
                                      2.0**-5: trials(0.3, 0.3, 0.3),
                                      2.0**-4: trials(None, 0.3, 0.3)})  # fmt: skip
    assert any("at the edge" in it for it in advice(at_edge).warnings)


def test_a_best_with_equals_is_at_no_end() -> None:
    same = {Candidate(4, 2.0**k): trials(1.0, 1.0, 1.0) for k in (-8, -7, -6)}
    told = " ".join(advice(session(rungs=[rung(10, 1.0, same)])).warnings)
    assert "learning rate is the" not in told


def test_a_best_of_a_bracket_at_its_end_is_told() -> None:
    found = session(rungs=[], in_time=False)
    found.brackets = {16: Bracket(16, {2.0**k: trials(*[0.3 + k / 100] * 3) for k in (-8, -7)})}
    assert any("highest that was tried" in it for it in advice(found).warnings)


def test_a_test_set_of_nearly_one_class_is_said_to_tell_nothing() -> None:
    perfect = [rung(10, 1.0, {A: trials(1.0, 1.0, 1.0), B: trials(1.0, 1.0, 1.0)})]
    found = advice(session(rungs=perfect, chance=0.98), n_test=150)
    assert "98.0% of the test images are of one class: even all 150 right" in found.warnings[0]
    assert headline(found).startswith("No answer")


def test_an_answer_has_the_settings_that_it_holds_for() -> None:
    found = advice(session())
    assert found.image_shape == (1, 8, 8)
    assert found.settings["model"] == "resnet8"
    assert found.settings["weight_decay"] == 0
    asked = session()
    study = asked.request.study.model_copy(update={"seeds": 24, "base_lrs": (0.5,)})
    of_grid = replace(asked.request, study=study)
    assert advice(session(request=of_grid)).settings == found.settings


def test_short_trainings_and_changes_of_order_are_told() -> None:
    told = " ".join(advice(session()).warnings)
    assert "best accuracy still rose from 70.2% after 3 to 80.0% after 10 epochs" in told
    assert "The order changed: the best at 30% of the training is number 2 at 100%" in told


def test_short_trainings_are_told_though_the_best_came_to_the_race_late() -> None:
    late = rung(10, 1.0, {C: trials(0.9, 0.9, 0.9), A: trials(0.8, 0.81, 0.79)})
    early = rung(3, 0.3, {A: trials(0.70, 0.71, 0.69), B: trials(0.6, 0.6, 0.6)})
    told = " ".join(advice(session(rungs=[early, late])).warnings)
    assert "rose from 70.0% after 3 to 90.0% after 10 epochs" in told


@pytest.mark.parametrize(
    ("rates", "best", "breaks_above", "is_told"),
    [
        ((-8, -7, -6), -7, False, False),
        ((-8, -7, -6), -6, False, True),
        ((-8, -7, -6), -6, True, False),
        ((-8, -7, -6), -8, False, True),
    ],
)
def test_a_best_of_another_batch_size_at_an_end_of_its_range_is_told(
    rates: tuple[int, ...], best: int, breaks_above: bool, is_told: bool
) -> None:
    field = {Candidate(16, 2.0**k): trials(*[0.7 if k == best else 0.6] * 3) for k in rates}
    found = session(rungs=[rung(10, 1.0, {A: trials(0.8, 0.81, 0.8), **field})])
    if breaks_above:
        survived = {2.0**k: trials(0.3, 0.3, 0.3) for k in range(-8, -5)}
        found.brackets[16] = Bracket(16, {**survived, 2.0**-5: trials(None, 0.3, 0.3)})
    told = " ".join(advice(found).larger_budget)
    assert ("at m = 16: the best there was at an end" in told) == is_told


def test_seeds_that_would_decide_give_the_test_its_power() -> None:
    rng = np.random.default_rng(0)
    one, other = [0.80, 0.83, 0.81, 0.83, 0.79], [0.80, 0.80, 0.82, 0.80, 0.80]
    found = advice(session(final=fresh(one, other)))
    text = next(it for it in found.warnings if "cannot be told apart" in it)
    seeds = int(text.split("about ")[1].split()[0])
    d = np.subtract(one, other)
    simulated = rng.normal(d.mean(), d.std(ddof=1), (20_000, seeds))
    t = simulated.mean(axis=1) / stats.sem(simulated, axis=1)
    decided = np.abs(t) > stats.t.ppf(0.975, seeds - 1)
    assert decided.mean() == pytest.approx(0.8, abs=0.05)


def test_what_was_left_out_is_said() -> None:
    found = advice(session(cut=[C, C], in_time=False))
    told = " ".join(found.larger_budget)
    assert "1,000 of 1,437" in told
    assert "left out 2 candidates" in told
    assert "fresh seeds" in told
    assert "4, 16" in found.untested[0]
