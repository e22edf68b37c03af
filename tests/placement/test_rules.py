from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
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


LIMITS = (1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 17, 20, 24, 31, 33, 60)
MOST = 60  # runs


def evenly(runs: Sequence[int], workers: int, limit: int) -> list[list[int]]:
    """Every n-th run for each chunk: what is dealt where every lane takes its own time."""
    rounds = -(-len(runs) // (workers * limit))
    chunks = min(len(runs), rounds * workers)
    return [list(runs[i::chunks]) for i in range(chunks)]


def vectors_of(chunks: list[list[int]], vector: int) -> list[int]:
    return [-(-len(chunk) // vector) for chunk in chunks]


@cache
def fewest_vectors(vector: int, largest: int) -> np.ndarray:
    """[chunks, runs]: the fewest vectors of so many runs in as many chunks or fewer, by trial.

    Entries without a way to do it are huge.
    """
    fewest = np.full((MOST + 1, MOST + 1), 10**6)
    fewest[:, 0] = 0
    for chunks in range(1, MOST + 1):
        for size in range(min(largest, MOST) + 1):
            fewer = fewest[chunks - 1, : MOST + 1 - size] - (-size // vector)
            np.minimum(fewest[chunks, size:], fewer, out=fewest[chunks, size:])
    return fewest


def time_of(vectors: list[int], workers: int) -> int:
    """Updates' time, in vectors, of workers who take the next chunk when they are done."""
    busy = [0] * workers
    for length in vectors:
        busy[busy.index(min(busy))] += length
    return max(busy)


@pytest.mark.parametrize("vector", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_dealing_leaves_the_fewest_places_empty_and_takes_no_longer(
    vector: int, workers: int
) -> None:
    for count, limit in product(range(1, MOST + 1), LIMITS):
        runs = range(count)
        chunks, even = deal(runs, workers, limit, vector), evenly(runs, workers, limit)
        case = f"{count} runs, at most {limit} a chunk: {[len(chunk) for chunk in chunks]}"
        assert sorted(run for chunk in chunks for run in chunk) == list(runs), case
        assert all(chunk == sorted(chunk) for chunk in chunks), case
        assert 1 <= min(map(len, chunks)) <= max(map(len, chunks)) <= limit, case
        vectors, before = vectors_of(chunks, vector), vectors_of(even, vector)
        largest = min(limit, max(before) * vector)
        assert sum(vectors) == fewest_vectors(vector, largest)[len(even), count], case
        assert len(chunks) <= len(even), case
        assert max(vectors) <= max(before), case
        assert time_of(vectors, workers) <= time_of(before, workers), case
        if sum(vectors) == sum(before) or vector == 1:
            assert chunks == even, case


@pytest.mark.parametrize("vector", [1, 2, 4, 8, 16])
def test_dealing_gives_each_chunk_its_share_of_every_range_of_learning_rates(vector: int) -> None:
    """To within a run and a half, from the largest down to any other."""
    for count, workers, limit in product(range(1, MOST + 1), (1, 2, 3, 4), LIMITS):
        for chunk in deal(range(count), workers, limit, vector):
            taken = np.searchsorted(chunk, range(count + 1))
            share = len(chunk) * np.arange(count + 1) / count
            assert np.abs(taken - share).max() < 1.5, (count, workers, limit, chunk)


@pytest.mark.parametrize(
    ("runs", "workers", "limit", "vector", "sizes"),
    [
        (39, 2, 100, 8, [23, 16]),  # five vectors instead of six
        (39, 2, 100, 16, [23, 16]),
        (39, 2, 100, 4, [20, 19]),
        (26, 2, 100, 8, [13, 13]),  # four vectors in any case
        (26, 2, 100, 16, [13, 13]),
        (13, 2, 100, 8, [7, 6]),
        (20, 4, 100, 8, [7, 7, 6]),  # a fourth worker would save no time
        (4, 2, 100, 8, [4]),
        (18, 2, 9, 8, [9, 9]),  # the memory does not allow two whole vectors
        (40, 2, 12, 8, [12, 12, 8, 8]),
        (40, 2, 5, 8, [5] * 8),
    ],
)
def test_examples_of_dealing(
    runs: int, workers: int, limit: int, vector: int, sizes: list[int]
) -> None:
    assert [len(chunk) for chunk in deal(range(runs), workers, limit, vector)] == sizes


def test_nothing_is_dealt_of_nothing() -> None:
    assert deal([], 2, 8, 8) == []


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
