from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.config import StudyConfig
from smallbatch.training.engines import choose, deal, free_memory


def study(**changes: Any) -> StudyConfig:
    settings: dict[str, Any] = {"model": "resnet8", "epochs": 1, "weight_decay": 0.0}
    return StudyConfig(**(settings | changes))


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 30))
def test_dealing_keeps_every_run_and_every_limit(runs: int, workers: int, limit: int) -> None:
    chunks = deal(list(range(runs)), workers, limit)
    assert sorted(run for chunk in chunks for run in chunk) == list(range(runs))
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    assert len(chunks) % workers == 0 or len(chunks) == runs


def test_dealing_spreads_learning_rates_and_keeps_seeds_together() -> None:
    """Two workers, two seeds: each worker gets one seed at every learning rate."""
    runs = [(lr, seed) for lr in range(13) for seed in range(2)]
    assert deal(runs, 2, 100) == [[(lr, seed) for lr in range(13)] for seed in range(2)]


@pytest.mark.parametrize(
    ("asked", "settings", "engine", "remark"),
    [
        ("loop", study(), "loop", None),
        ("stacked", study(), "stacked", None),
        ("stacked", study(model="alexnet", norm="batch_conv"), "stacked", None),
        ("stacked", study(model="resnet18"), "loop", "resnet18 has no stacked form"),
        ("auto", study(model="resnet18"), "loop", "resnet18 has no stacked form"),
        ("stacked", study(precision="bf16"), "loop", "bf16 has no stacked form"),
        ("auto", study(), "stacked", None),
    ],
)
def test_the_engine_is_the_one_asked_for_or_a_line_says_why_not(
    asked: Any, settings: StudyConfig, engine: str, remark: str | None
) -> None:
    choice = choose(asked, settings, batch_size=2, pixels=64, lanes=26)
    assert choice.engine == engine
    assert (choice.remark or "").split(";")[0] == (remark or "")


def test_auto_trains_a_single_run_plainly() -> None:
    assert choose("auto", study(), batch_size=2, pixels=64, lanes=1).engine == "loop"


def test_free_memory_is_a_plausible_number_of_bytes() -> None:
    assert 2**24 < free_memory() < 2**50
