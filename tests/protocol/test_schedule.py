from __future__ import annotations

from typing import Any

import pytest

from smallbatch.config.params import StudyConfig
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
