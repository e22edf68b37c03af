"""Measured rates are what the clock and the number of images make them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from smallbatch.config.base_lr import format_base_lr
from smallbatch.execution import workers
from smallbatch.placement.placement import Placement
from smallbatch.placement.workload import Method, Workload
from smallbatch.speed import rate
from smallbatch.speed.rate import Rate, measure

CASE = Workload("resnet8", "batch", None, False, "float32", 1, 8, 8, 10, 4, 4, "cpu", 2)


class Shares:
    """Of a machine of which others take a part: to be set."""

    found = 1.0
    most: int | None = None

    def __init__(self, most: int, without: object) -> None:
        Shares.most = most

    def look(self) -> None: ...

    def so_far(self) -> float:
        return Shares.found


def scripted(monkeypatch: pytest.MonkeyPatch, events: list[tuple[float, int]]) -> list[Any]:
    """Let `train_all` report the end of an epoch of a run at given times."""
    seen: list[Any] = []

    def train_all(job: Any, on_epoch: Any, on_done: Any) -> None:
        seen.append(job)
        for when, run in events:
            monkeypatch.setattr(rate, "time", SimpleNamespace(perf_counter=lambda when=when: when))
            on_epoch(job.missing[run], {})

    monkeypatch.setattr(workers, "train_all", train_all)
    monkeypatch.setattr(rate, "CoreShare", Shares)
    return seen


def test_the_rate_of_unequal_chunks_is_that_of_the_slowest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lanes, a chunk each, and no more: the column waits for run 1, 20/4 a second."""
    events = [(10.0, 0), (11.0, 1), (12.0, 0), (15.0, 0), (15.0, 1), (99.0, 0)]
    scripted(monkeypatch, events)
    monkeypatch.setattr(Placement, "vector_of", lambda *_: 1)
    case = replace(CASE, lanes=2)
    assert measure(case, Method("stacked"), seconds=4.0, updates=5) == Rate(10.0, 5.0, 2)


def test_a_rate_is_the_sum_of_the_runs_over_their_own_stretches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run 0: epochs of 20 images at 10, 12, 15; run 1 at 11, 15: 40/5 + 20/4, start-up left out."""
    events = [(10.0, 0), (11.0, 1), (12.0, 0), (15.0, 0), (15.0, 1), (99.0, 0)]
    jobs = scripted(monkeypatch, events)
    assert measure(CASE, Method("loop", 2), seconds=4.0, updates=5) == Rate(13.0, 5.0, 2)
    (job,) = jobs
    assert len(job.dataset.train_images) == 20
    assert (job.placement.method, job.workers) == (Method("loop", 2), 2)


def test_a_speed_of_which_others_took_a_part_is_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    for share in (0.94, 0.95):
        scripted(monkeypatch, [(0.0, 0), (0.0, 1), (9.0, 0), (9.0, 1)])
        monkeypatch.setattr(Shares, "found", share)
        measured = measure(CASE, Method("loop"), seconds=1.0)
        assert (measured.share, measured.disturbed) == (share, share < 0.95)
        assert Shares.most == 2  # of however many cores, as two workers use no more


@pytest.mark.parametrize(("vector", "workers"), [(1, 2), (2, 2), (4, 1)])
def test_a_worker_without_a_chunk_uses_no_core(
    monkeypatch: pytest.MonkeyPatch, vector: int, workers: int
) -> None:
    """Four lanes that fill one vector are all computed by one worker."""
    monkeypatch.setattr(Placement, "vector_of", lambda *_: vector)
    scripted(monkeypatch, [(float(when), run) for when in (0, 9) for run in range(4)])
    assert measure(CASE, Method("stacked"), seconds=1.0).live == 4
    assert Shares.most == workers


def test_a_worker_that_is_slow_to_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, [(0.0, 0), (9.0, 0), (9.5, 1), (10.0, 0), (11.5, 1)])
    assert measure(CASE, Method("loop"), seconds=1.0, updates=1).live == 2
    four = [(float(when), run) for when in (0, 9, 10) for run in range(4)]
    scripted(monkeypatch, four)
    assert measure(CASE, Method("stacked"), seconds=1.0, updates=1).live == 4


def test_workers_that_memory_keeps_idle_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """For five epochs and ten seconds of the others, whichever takes longer."""
    scripted(monkeypatch, [(float(when), 0) for when in range(19)])
    assert measure(CASE, Method("stacked"), seconds=1.0, updates=1) == Rate(
        CASE.batch_size, 10.0, 1
    )
    scripted(monkeypatch, [(4.0 * when, 0) for when in range(9)])
    measured = measure(CASE, Method("stacked"), seconds=1.0, updates=1)
    assert (measured.live, measured.seconds) == (1, 16.0)


def test_the_runs_are_those_of_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = scripted(monkeypatch, [(0.0, 0), (0.0, 1), (9.0, 0), (9.0, 1)])
    measure(CASE, Method("loop"), seconds=1.0)
    runs = jobs[0].missing
    assert len({run.hash for run in runs}) == CASE.lanes
    assert [run.seed for run in runs] == [0, 1, 0, 1]
    assert all(run.base_lr < 2**-20 for run in runs), format_base_lr(runs[-1].base_lr)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "stacked"])
def test_real_workers_are_measured_and_stopped(engine: Any) -> None:
    measured = measure(CASE, Method(engine), seconds=0.1)
    assert measured.live == (2 if engine == "loop" else 4)
    assert measured.seconds >= 0.1
    assert measured.images_per_second > 0
