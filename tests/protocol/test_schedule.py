from __future__ import annotations

import math
from typing import Any

import pytest

from smallbatch.config.study import StudyConfig
from smallbatch.protocol.optimiser import betas_at
from smallbatch.protocol.run import Run
from smallbatch.protocol.schedule import scheduled_lr, updates_after


def study(**changes: Any) -> StudyConfig:
    settings: dict[str, Any] = {"model": "resnet8", "epochs": 10, "weight_decay": 1e-4}
    return StudyConfig(**(settings | changes))


def test_updates_are_the_whole_batches_of_the_joined_epochs() -> None:
    assert updates_after(82, 50_000, 128) == 32_031  # 82 · 50,000 / 128 = 32,031.25
    assert updates_after(82, 50_000, 2) == 2_050_000
    assert updates_after(3, 10, 4) == 7  # batches straddle epochs: not 3 · 2


def test_the_learning_rate_is_divided_by_ten_at_half_and_three_quarters() -> None:
    rates = [scheduled_lr(u, 8, 1.0, study()) for u in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_rises_from_a_32nd_over_its_fraction_then_the_schedule_goes_on() -> None:
    rates = [scheduled_lr(u, 40, 3.2, study(warmup=0.1)) for u in range(40)]
    assert rates[:4] == pytest.approx([0.1, 0.1 + 3.1 / 4, 0.1 + 3.1 / 2, 0.1 + 3 * 3.1 / 4])
    assert rates[4:20] == [3.2] * 16
    assert rates[20] == pytest.approx(0.32)
    assert rates[39] == pytest.approx(0.032)


def test_identity_covers_what_determines_the_result_and_nothing_else() -> None:
    run = Run(study(), "abc", 8, 2.0**-6, 0)
    assert run.hash == Run(study(figure="2", base_lrs=(0.5,)), "abc", 8, 2.0**-6, 0).hash
    others = [
        Run(study(epochs=11), "abc", 8, 2.0**-6, 0),
        Run(study(norm="batch"), "abc", 8, 2.0**-6, 0),
        Run(study(), "abd", 8, 2.0**-6, 0),
        Run(study(), "abc", 16, 2.0**-6, 0),
        Run(study(), "abc", 8, 2.0**-7, 0),
        Run(study(), "abc", 8, 2.0**-6, 1),
    ]
    assert len({run.hash, *(other.hash for other in others)}) == 7
    assert run.lr == 8 * 2.0**-6


def test_runs_of_before_there_were_optimisers_keep_their_identity() -> None:
    assert Run(study(), "abc", 8, 2.0**-6, 0).hash == "75e8becc2ef39a11"
    cosine = Run(study(schedule="cosine"), "abc", 8, 2.0**-6, 0)
    assert cosine.hash != "75e8becc2ef39a11"


def test_each_number_of_an_optimiser_is_in_the_identity() -> None:
    settings: list[dict[str, Any]] = [
        {"optimizer": "momentum"},
        {"optimizer": "momentum", "momentum": 0.5},
        {"optimizer": "nesterov"},
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "betas": [0.9, 0.99]},
        {"optimizer": "adamw", "beta2_examples": 1000.0},
        {"optimizer": "adamw", "eps": 1e-6},
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {},
    ]
    hashes = {Run(study(**it), "abc", 8, 2.0**-6, 0).hash for it in settings}
    assert len(hashes) == len(settings)
    spelt = study(optimizer="momentum", momentum=0.9)
    assert Run(spelt, "abc", 8, 2.0**-6, 0).hash in hashes


def test_half_a_cosine_from_the_warm_up_to_the_end() -> None:
    rates = [scheduled_lr(u, 40, 2.0, study(schedule="cosine", warmup=0.1)) for u in range(40)]
    assert rates[:4] == [scheduled_lr(u, 40, 2.0, study(warmup=0.1)) for u in range(4)]
    assert rates[4] == 2.0
    assert rates[22] == pytest.approx(1.0)
    assert rates[39] == pytest.approx(2.0 * (1 + math.cos(math.pi * 35 / 36)) / 2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_under_adamw_the_grid_has_learning_rates_themselves() -> None:
    assert Run(study(optimizer="adamw"), "abc", 8, 2.0**-6, 0).lr == 2.0**-6


def test_a_squared_gradient_counts_half_after_as_many_examples_at_every_m() -> None:
    for m in (1, 7, 32):
        beta1, beta2 = betas_at(study(optimizer="adamw", beta2_examples=640.0), m)
        assert beta1 == 0.9
        assert beta2 ** (640 / m) == pytest.approx(0.5)


def test_of_files_behind_a_model_only_the_content_is_identity() -> None:
    plain = Run(study(), "abc", 8, 2.0**-6, 0)
    assert plain.hash == Run(study(), "abc", 8, 2.0**-6, 0, "").hash
    tuned = [Run(study(pretrained=path), "abc", 8, 2.0**-6, 0, "weights 1") for path in ("a", "b")]
    assert tuned[0].hash == tuned[1].hash != plain.hash
    others = [
        Run(study(pretrained="a"), "abc", 8, 2.0**-6, 0, "weights 2"),
        Run(study(pretrained="a", freeze="head only"), "abc", 8, 2.0**-6, 0, "weights 1"),
    ]
    assert len({it.hash for it in (plain, tuned[0], *others)}) == 4
