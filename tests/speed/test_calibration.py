"""What is known of the machine is kept, survives damage, and decides; no test looks at a clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smallbatch import machine, private
from smallbatch.config.params import ComputeConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines.lanes import native
from smallbatch.errors import UserError, WorkerLost
from smallbatch.placement import known as store
from smallbatch.placement.known import Known, fastest, known, learn, workload_key
from smallbatch.placement.placement import place
from smallbatch.placement.workload import Method, Workload, training_flops_of
from smallbatch.speed import calibration
from smallbatch.speed.calibration import calibrate, decide
from smallbatch.speed.rate import Rate
from tests.columns import place_and_train
from tests.execution.test_column import plan

CASE = Workload("resnet8", "batch", None, False, "float32", 1, 8, 8, 10, 8, 26, "cpu", 2)
LOOP, STACKED, CHUNKS = Method("loop"), Method("stacked"), Method("stacked", 8)
MUCH = 10**9  # images: a column that is worth a calibration


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def lanes_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which chunks are another way; native lanes have one way only."""
    monkeypatch.setattr(native, "takes", lambda *_: False)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if in a new process."""
    monkeypatch.setattr(store, "_learnt", Known())
    monkeypatch.setattr(store, "_rough", {})


def speeds(
    monkeypatch: pytest.MonkeyPatch,
    rates: Mapping[str, float | Exception],
    shares: Mapping[str, float] | None = None,
) -> list[str]:
    """Replace the clock by given speeds; returns the list of what is measured."""
    measured: list[str] = []

    def measure(_workload: Workload, method: Method, **_: Any) -> Rate:
        measured.append(method.key)
        rate = rates[method.key]
        if isinstance(rate, Exception):
            raise rate
        return Rate(rate, 1.0, 1, (shares or {}).get(method.key, 1.0))

    monkeypatch.setattr(calibration, "measure", measure)
    return measured


def test_what_is_learnt_is_there_for_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    learn(rates={"a": {"loop": 1.0}}, startup=3.0)
    learn(rates={"a": {"stacked": 2.0}, "b": {"loop": 5.0}}, choices={"column": CHUNKS})
    forget(monkeypatch)
    learn(rates={"a": {"loop": 1.5}}, choices={"column": LOOP})
    forget(monkeypatch)
    assert known().rates == {"a": {"loop": 1.5, "stacked": 2.0}, "b": {"loop": 5.0}}
    # The first one stays.
    first = {"engine": "stacked", "lanes": 8, "kernels": None, "micro_batch": None}
    assert known().choices == {"column": first}
    assert known().startup == 3.0


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", "null", '{"rates": {}}', '{"rates": [], "choices": {}, "startup": null}',
     '{"rates": {"a": {"loop": "fast"}}, "choices": {}, "startup": null}',
     '{"rates": {"a": {"loop": NaN}}, "choices": {}, "startup": null}',
     '{"rates": {}, "choices": {"c": {"engine": "warp", "lanes": null}}, "startup": null}',
     '{"rates": {}, "choices": {"c": {"engine": "loop", "lanes": 1, "kernels": 0}}, "startup": 1}',
     f'{{"rates": {{"a": {{"loop": 1{"0" * 400}}}}}, "choices": {{}}, "startup": null}}',
     "[" * 100_000]
)  # fmt: skip
def test_a_damaged_cache_is_forgotten_and_replaced(
    cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    learn(rates={"a": {"loop": 1.0}})
    (file,) = cache.glob("calibration-*.json")
    file.write_text(damage)
    forget(monkeypatch)
    assert known() == Known()
    learn(rates={"b": {"loop": 2.0}})
    forget(monkeypatch)
    assert known().rates == {"b": {"loop": 2.0}}
    json.loads(file.read_text())


def test_without_a_place_to_write_a_process_still_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "file" / "cache"))
    learn(choices={"column": STACKED})
    assert known().choices["column"]["engine"] == "stacked"


def test_a_cache_that_others_may_write_is_forgotten(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(rates={"a": {"loop": 1.0}})
    (file,) = cache.glob("calibration-*.json")
    file.chmod(0o666)
    forget(monkeypatch)
    assert known() == Known()


def test_a_cache_that_another_process_has_locked_is_not_waited_for_long(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOCK_S", 0.1)
    learn(rates={"a": {"loop": 1.0}})
    (lock,) = cache.glob("*.lock")
    with private.locked(lock, wait=0):
        learn(rates={"a": {"loop": 2.0}})
    assert known().rates == {"a": {"loop": 2.0}}
    forget(monkeypatch)
    assert known().rates == {"a": {"loop": 1.0}}


@pytest.mark.parametrize("changed", ["cpu_model", "cores", "code_digest", "gpu_name"])
def test_another_machine_or_code_starts_afresh(
    monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    learn(rates={"a": {"loop": 1.0}})
    forget(monkeypatch)
    module: Any = store if changed == "code_digest" else machine
    monkeypatch.setattr(module, changed, lambda *_: "another")
    store._machine.cache_clear()
    try:
        assert known() == Known()
    finally:
        monkeypatch.undo()
        store._machine.cache_clear()


def test_the_fastest_way_is_taken_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"loop": 100.0, "stacked": 300.0, "stacked in chunks of 8": 400.0}
    measured = speeds(monkeypatch, rates)
    assert decide("column", CASE, MUCH, lambda: True) == CHUNKS
    assert sorted(measured) == sorted(rates)
    assert decide("another", CASE, MUCH, lambda: True) == CHUNKS
    forget(monkeypatch)
    assert decide("another", CASE, 0, lambda: True) == CHUNKS
    assert len(measured) == 3


def test_a_speed_beside_other_programs_is_not_kept_and_does_not_decide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"loop": 100.0, "stacked": 300.0, "stacked in chunks of 8": 400.0}
    speeds(monkeypatch, rates, {"stacked": 0.9, CHUNKS.key: 0.6})
    assert decide("column", CASE, MUCH, lambda: True) is None
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith(
        ": other programs took 40 % of the cores while it was measured: stacked, "
        "stacked in chunks of 8 will be measured again"
    )
    assert known().rates == {workload_key(CASE): {"loop": 100.0}}
    assert fastest(CASE, [LOOP, STACKED, CHUNKS]) is None
    assert fastest(CASE, [LOOP, STACKED, CHUNKS], rough=True) == (CHUNKS, 400.0)
    forget(monkeypatch)
    assert fastest(CASE, [LOOP, STACKED, CHUNKS], rough=True) is None

    measured = speeds(monkeypatch, {**rates, "stacked": 200.0, CHUNKS.key: 150.0})
    calibrate(CASE, [LOOP, STACKED, CHUNKS])
    assert sorted(measured) == ["stacked", CHUNKS.key]
    assert fastest(CASE, [LOOP, STACKED, CHUNKS]) == (STACKED, 200.0)


def test_a_choice_stays_whatever_is_learnt_later(monkeypatch: pytest.MonkeyPatch) -> None:
    learn(choices={"column": LOOP})
    learn(rates={workload_key(CASE): {"loop": 1.0, "stacked": 9.0, "stacked in chunks of 8": 8.0}})
    assert decide("column", CASE, MUCH, lambda: True) == LOOP
    assert decide("another", CASE, MUCH, lambda: True) == STACKED


@pytest.mark.parametrize(
    ("workload", "images", "stackable"),
    [
        (CASE, 10**5, True),  # not worth it
        (replace(CASE, lanes=1), MUCH, True),
        (CASE, MUCH, False),
        # It would take more than a few seconds.
        (replace(CASE, height=224, width=224, batch_size=2048), 10**13, True),
    ],
)
def test_nothing_is_measured_where_it_does_not_pay(
    monkeypatch: pytest.MonkeyPatch, workload: Workload, images: int, stackable: bool
) -> None:
    measured = speeds(monkeypatch, {})
    assert decide("column", workload, images, lambda: stackable) is None
    assert measured == []


def test_a_calibration_takes_at_most_two_percent_of_the_least_time() -> None:
    """At 60 GFLOP/s per worker and 4.7 MFLOP an image, the bound in images is worked out here."""
    candidates = [LOOP, STACKED, CHUNKS]
    flops = training_flops_of(CASE)
    seconds = calibration.cost(CASE, candidates, flops)
    # Two epochs of 5 updates at 20 ms and, of 13 lanes of 8 images, at 10 GFLOP/s; half a second
    # to start.
    assert seconds == pytest.approx(
        3 * 0.5 + 0.5 + 2 * max(0.5, 10 * (0.02 + 13 * 8 * flops / 1e10))
    )
    images = seconds / 0.02 * 2 * 60e9 / flops
    assert calibration.least_seconds(CASE, round(images), flops) == pytest.approx(seconds / 0.02)


def test_a_way_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = WorkerLost("a training worker was killed by signal 9")
    speeds(monkeypatch, {"loop": 5.0, "stacked": failure, "stacked in chunks of 8": failure})
    assert decide("column", CASE, MUCH, lambda: True) == LOOP
    other = CASE.at(32)
    speeds(monkeypatch, {"loop": failure})
    with pytest.raises(WorkerLost, match="killed"):
        calibrate(other, [LOOP])
    speeds(monkeypatch, {"loop": UserError("model: does not fit")})
    with pytest.raises(UserError):
        calibrate(other, [LOOP])
    assert fastest(other, [LOOP]) is None


@pytest.mark.parametrize(("loop", "stacked", "engine"), [(9.0, 5.0, "loop"), (5.0, 9.0, "stacked")])
def test_auto_trains_by_what_was_learnt_and_records_it(
    noise: Dataset, tmp_path: Path, loop: float, stacked: float, engine: str
) -> None:
    compute = ComputeConfig(device="cpu", workers=2)
    column = plan(noise)
    from smallbatch.placement.placement import workload_of

    learn(rates={workload_key(workload_of(column, compute)): {"loop": loop, "stacked": stacked}})
    assert place(column, compute, keep=False).engine == engine
    assert known().choices == {}
    out = tmp_path / "m4"
    place_and_train(column, out, compute=compute, work=tmp_path / "work")
    assert json.loads((out / "timing.json").read_text())["column"]["engine"] == engine
    (choice,) = known().choices.values()
    assert choice["engine"] == engine
    learn(rates={workload_key(workload_of(column, compute)): {"loop": stacked, "stacked": loop}})
    assert place(column, compute).engine == engine
    wider = plan(noise, base_lrs=(2.0**-7, 2.0**-8), seeds=4)
    assert place(wider, compute).engine == engine  # the same study, data and m
    pinned = ComputeConfig(device="cpu", workers=2, engine="loop")
    assert place(column, pinned).engine == "loop"


def test_the_chunks_that_were_chosen_reach_the_workers(
    noise: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six runs in one worker, two lanes at a time."""
    from smallbatch.execution import workers

    chunks: list[int] = []
    train_chunk = workers._train_chunk

    def spy(job: Any, data: Any, runs: Any, news: Any, ranks: Any) -> None:
        done = news.done
        told = news._replace(done=lambda run, _: done(run, str(len(runs.runs))))
        train_chunk(job, data, runs, told, ranks)

    monkeypatch.setattr(workers, "_train_chunk", spy)
    column, compute = plan(noise), ComputeConfig(device="cpu", workers=1)
    learn(
        choices={f"{replace(column.runs[0], base_lr=1.0, seed=0).hash} cpu": Method("stacked", 2)}
    )

    class Observer:
        def run_begun(self, run: Any, started: Any) -> None: ...

        def run_epoch(self, run: Any, row: Any) -> None: ...

        def run_done(self, run: Any, outcome: str) -> None:
            chunks.append(int(outcome))

    place_and_train(
        column, tmp_path / "m4", compute=compute, work=tmp_path / "work", observers=[Observer()]
    )
    assert chunks == [2] * 6
