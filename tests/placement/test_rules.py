from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallbatch.config.study import StudyConfig
from smallbatch.engines.lanes import native
from smallbatch.engines.lanes.native import compiler as native_compiler
from smallbatch.placement.rules import Choice, choose, deal
from smallbatch.placement.workload import Method


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


def pick(asked: Any, settings: StudyConfig, *, lanes: int = 26, vmap: Any = None) -> Choice:
    return choose(
        asked, settings, batch_size=2, pixels=64, lanes=lanes, device="cpu", vmap_works=vmap,
        triton_works=pytest.fail,
    )  # fmt: skip


def pick_on_gpu(
    asked: Any, settings: StudyConfig, *, lanes: int = 26, triton: bool = True
) -> Choice:
    return choose(
        asked, settings, batch_size=2, pixels=64, lanes=lanes, device="cuda",
        vmap_works=lambda: True, triton_works=lambda: triton,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "settings", "engine", "remark"),
    [
        ("loop", study(), "loop", ""),
        ("stacked", study(), "stacked", ""),
        ("stacked", study(model="alexnet", norm="batch_conv"), "stacked", ""),
        ("stacked", study(precision="bf16"), "loop", "bf16 on a GPU alone"),
        ("auto", study(), "stacked", ""),
        ("auto", study(model="resnet18"), "loop", ""),
    ],
)
def test_the_engine_is_the_one_asked_for_or_a_line_says_why_not(
    asked: Any, settings: StudyConfig, engine: str, remark: str
) -> None:
    choice = pick(asked, settings)
    assert choice.method.engine == engine
    assert remark in (choice.remark or "")
    assert bool(remark) == bool(choice.remark)


@pytest.mark.parametrize(
    ("asked", "compiler", "remark"),
    [
        ("stacked", "c++", "lanes by torch, without the kernels in C++: it fails"),
        ("stacked", None, "lanes by torch, without the kernels in C++: it fails"),
        ("auto", "c++", "the loop engine trains it, without the kernels in C++: it fails"),
        ("auto", None, None),
    ],
)
def test_a_line_says_why_there_are_no_kernels_in_cpp(
    monkeypatch: pytest.MonkeyPatch, asked: Any, compiler: str | None, remark: str | None
) -> None:
    monkeypatch.setattr(native, "failure", lambda *_: "it fails")
    monkeypatch.setattr(native, "available", lambda *_: False)
    monkeypatch.setattr(native_compiler, "compiler", lambda: compiler)
    assert pick(asked, study()).remark == remark
    assert pick(asked, study(model="resnet18"), vmap=lambda: False).remark != remark or not remark
    assert pick("auto", study(), lanes=1).remark is None


@pytest.mark.parametrize(("works", "engine"), [(True, "stacked"), (False, "loop")])
def test_other_models_are_stacked_by_vmap_where_that_works(works: bool, engine: str) -> None:
    choice = pick("stacked", study(model="resnet18"), vmap=lambda: works)
    assert choice.method.engine == engine
    assert choice.remark is not None
    assert "resnet18" in choice.remark
    assert "vmap" in choice.remark
    assert "\n" not in choice.remark


@pytest.mark.parametrize(("model", "engine"), [("resnet8", "stacked"), ("resnet18", "loop")])
def test_bf16_is_stacked_on_a_gpu(model: str, engine: str) -> None:
    assert pick_on_gpu("stacked", study(model=model, precision="bf16")).method.engine == engine


def test_the_rule_for_a_gpu_of_unknown_speed_is_triton_where_it_works() -> None:
    triton, loop = Choice(Method("stacked", kernels="triton")), Choice(Method("loop"))
    assert pick_on_gpu("auto", study()) == triton
    assert pick_on_gpu("auto", study(precision="bf16")) == triton
    assert pick_on_gpu("auto", study(), triton=False) == loop
    assert pick_on_gpu("auto", study(), lanes=1) == loop
    assert pick_on_gpu("auto", study(model="resnet18")) == loop


def test_a_pinned_stacked_engine_does_without_kernels_that_do_not_work() -> None:
    assert pick_on_gpu("stacked", study()) == Choice(Method("stacked", kernels="triton"))
    grouped = Choice(Method("stacked", kernels="grouped"))
    assert pick_on_gpu("stacked", study(), triton=False) == grouped
    by_vmap = pick_on_gpu("stacked", study(model="resnet18"))
    assert (by_vmap.method.engine, by_vmap.method.kernels) == ("stacked", None)


def test_auto_trains_a_single_run_plainly() -> None:
    assert pick("auto", study(), lanes=1).method.engine == "loop"
