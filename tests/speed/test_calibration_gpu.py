"""How `engine: auto` decides on a GPU, from given speeds and findings; no test needs a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import ComputeConfig
from smallbatch.data.prepared import Dataset
from smallbatch.engines.lanes import kernels as stacked_choice
from smallbatch.engines.made_by import made_by_on
from smallbatch.errors import WorkerLost
from smallbatch.placement import known as store
from smallbatch.placement import placement as placements
from smallbatch.placement.known import Known, known, learn, methods, workload_key
from smallbatch.placement.placement import place, workload_of
from smallbatch.placement.workload import Method, Workload, training_flops_of
from smallbatch.speed import agreement, calibration
from smallbatch.speed.agreement import Disagreement
from smallbatch.speed.calibration import cost, decide, least_seconds
from smallbatch.speed.rate import Rate
from tests.columns import place_and_train
from tests.execution.test_column import plan

CASE = Workload("resnet8", "batch", None, False, "float32", 3, 32, 32, 10, 32, 26, "cuda", 1)
LOOP = Method("loop")
GROUPED, TRITON = Method("stacked", kernels="grouped"), Method("stacked", kernels="triton")
THREE = [LOOP, GROUPED, TRITON]
LONG, SHORT = 3 * 10**9, 10**6  # images


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLBATCH_CACHE", str(tmp_path / "cache"))
    forget(monkeypatch)
    return tmp_path / "cache"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if in a new process."""
    monkeypatch.setattr(store, "_learnt", Known())


def machine(
    monkeypatch: pytest.MonkeyPatch,
    rates: Mapping[Method, float | Exception],
    findings: Mapping[Method, Exception] | None = None,
) -> list[str]:
    """A GPU of given speeds; returns what is done with it."""
    done: list[str] = []

    def check(_workload: Workload, method: Method, _memory: int | None) -> None:
        done.append(f"check {method.kernels}")
        if method in (findings or {}):
            raise (findings or {})[method]

    def measure(_workload: Workload, method: Method, **_: Any) -> Rate:
        done.append(f"measure {method.kernels or method.engine}")
        rate = rates[method]
        if isinstance(rate, Exception):
            raise rate
        return Rate(rate, 1.0, 1)

    monkeypatch.setattr(calibration, "check", check)
    monkeypatch.setattr(calibration, "measure", measure)
    return done


@pytest.mark.parametrize(
    ("rates", "best"),
    [((9.0, 5.0, 7.0), LOOP), ((5.0, 9.0, 7.0), GROUPED), ((5.0, 7.0, 9.0), TRITON)],
)
def test_the_fastest_of_three_is_kept(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rates: tuple[float, ...],
    best: Method,
) -> None:
    done = machine(monkeypatch, dict(zip(THREE, rates, strict=True)))
    assert decide("column", CASE, LONG, lambda: True) == best
    # Nothing is measured before it is known to be right.
    assert done == ["measure loop", "check grouped", "measure grouped", "check triton",
                    "measure triton"]  # fmt: skip
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"finding the fastest way to train {CASE.key}"
    assert decide("another", CASE, LONG, lambda: True) == best
    assert len(done) == 5


@pytest.mark.parametrize(
    ("findings", "failing", "best", "why"),
    [
        ({TRITON: Disagreement("its first update deviates")}, {}, GROUPED, "its first update dev"),
        ({TRITON: Disagreement("CompilationError: at 3:1\nx = y")}, {}, GROUPED, "CompilationErr"),
        ({}, {TRITON: RuntimeError("CUDA error: misaligned\nmore")}, GROUPED, "CUDA error: misal"),
        ({TRITON: WorkerLost("the GPU's memory ran out")}, {}, GROUPED, "the GPU's memory ran"),
        ({GROUPED: Disagreement("its first update deviates")}, {}, TRITON, "its first update dev"),
    ],
)
def test_a_way_that_disagrees_or_fails_is_left_out_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    findings: Mapping[Method, Exception],
    failing: Mapping[Method, Exception],
    best: Method,
    why: str,
) -> None:
    bad = TRITON if best == GROUPED else GROUPED
    rates = {LOOP: 5.0, GROUPED: 7.0, TRITON: 9.0, **failing}
    done = machine(monkeypatch, rates, findings)
    assert decide("column", CASE, LONG, lambda: True) == best
    _, line = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{CASE.key}: stacked by {bad.kernels} kernels is left out: {why}")
    assert ("measure triton" in done) == (TRITON not in findings)
    # It is not tried again, by whatever process.
    forget(monkeypatch)
    assert known().rates[workload_key(CASE)][bad.key] == 0.0
    count = len(done)
    assert decide("another", CASE, LONG, lambda: True) == best
    assert len(done) == count
    assert capsys.readouterr().err == ""


def test_the_loop_engine_trains_where_both_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Disagreement("its first update deviates")
    machine(monkeypatch, {LOOP: 5.0}, {GROUPED: wrong, TRITON: wrong})
    assert decide("column", CASE, LONG, lambda: True) == LOOP
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_where_nothing_works_the_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = WorkerLost("the GPU's memory ran out")
    machine(monkeypatch, dict.fromkeys(THREE, lost), {})
    with pytest.raises(WorkerLost, match="memory ran out"):
        decide("column", CASE, LONG, lambda: True)
    assert known().rates == {}


def test_finding_out_costs_at_most_two_percent_and_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An update of all lanes takes 75 MFLOP × 32 × 26 at 2 TFLOP/s and 5 ms, of a run less."""
    flops = training_flops_of(CASE)
    stacked, loop = (0.005 + 32 * lanes * flops / 2e12 for lanes in (26, 1))
    updates = 2 * (8 + 512 // 32)
    parts = [
        *[1 + max(0.5, updates * update) for update in (loop, stacked, stacked)],
        *[1 + stacked, 1 + stacked, 1 + agreement.COMPARED * loop],
    ]
    seconds = cost(CASE, THREE, flops)
    assert seconds == pytest.approx(sum(parts) + 30)  # Triton's kernels are compiled once
    learn(rates={workload_key(CASE.at(2)): {TRITON.key: 1.0}})
    assert cost(CASE, THREE, flops) == pytest.approx(sum(parts))
    assert cost(replace(CASE, model="resnet20"), THREE, flops) == pytest.approx(seconds)

    done = machine(monkeypatch, {LOOP: 1.0, GROUPED: 2.0, TRITON: 3.0})
    images = int(50 * sum(parts) * 4e13 / flops)
    assert least_seconds(CASE, images, flops) == pytest.approx(50 * sum(parts), rel=1e-6)
    assert decide("column", CASE, int(0.99 * images), lambda: True) is None
    assert done == []
    assert decide("column", CASE, int(1.01 * images), lambda: True) == TRITON
    huge = replace(CASE, height=224, width=224, batch_size=2048)
    assert cost(huge, THREE, training_flops_of(huge)) > 60
    assert decide("huge", huge, 10**13, lambda: True) is None


def test_short_updates_take_their_launches_time() -> None:
    tiny = replace(CASE, height=8, width=8, batch_size=2)
    flops = training_flops_of(tiny)
    assert least_seconds(tiny, 52 * 10**6, flops) == pytest.approx(100.0)


def test_a_short_column_takes_what_is_known_of_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case does not depend on the number of epochs."""
    done = machine(monkeypatch, {})
    assert decide("short", CASE, SHORT, lambda: True) is None
    learn(rates={workload_key(CASE): {LOOP.key: 1.0, GROUPED.key: 3.0, TRITON.key: 2.0}})
    assert decide("short", CASE, SHORT, lambda: True) == GROUPED
    assert decide("other lanes", replace(CASE, lanes=13), SHORT, lambda: True) is None
    assert done == []


def test_models_without_stacked_layers_have_one_stacked_way() -> None:
    assert methods(CASE, ("loop", "stacked")) == THREE
    assert methods(CASE, ("stacked",)) == [GROUPED, TRITON]
    other = replace(CASE, model="resnet18")
    assert methods(other, ("loop", "stacked")) == [LOOP, Method("stacked")]


def test_choices_survive_and_old_ones_are_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(choices={"new": TRITON})
    (file,) = cache.glob("calibration-*.json")
    content = json.loads(file.read_text())
    content["choices"]["old"] = {"engine": "stacked", "lanes": 8}
    file.write_text(json.dumps(content))
    forget(monkeypatch)
    assert decide("new", CASE, 0, lambda: False) == TRITON
    assert decide("old", CASE, 0, lambda: False) == Method("stacked", 8)
    file.write_text(file.read_text()[:-20])
    assert decide("new", CASE, 0, lambda: False) is None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What chooses a column's way believes in a GPU."""
    monkeypatch.setattr(placements, "resolve_device", lambda _: "cuda")


@pytest.mark.usefixtures("gpu")
def test_a_column_keeps_what_was_chosen_for_it(
    noise: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    column, compute = plan(noise), ComputeConfig(device="auto")
    tried: list[str] = []

    def works(_device: object, precision: str) -> bool:
        tried.append(precision)
        return False

    monkeypatch.setattr(stacked_choice, "triton_works", works)
    assert place(column, compute, keep=False).method == LOOP  # the rule
    assert tried == ["float32"]
    workload = workload_of(column, compute)
    assert workload.device == "cuda"
    learn(rates={workload_key(workload): {LOOP.key: 1.0, GROUPED.key: 3.0, TRITON.key: 2.0}})
    expected = GROUPED
    assert place(column, compute).method == expected
    learn(rates={workload_key(workload): {TRITON.key: 9.0}})
    assert place(column, compute).method == expected
    assert place(column, compute, keep=False).method == expected
    assert tried == ["float32"]
    # The engine pinned: nothing that was learnt counts.
    for engine, choice in [("loop", LOOP), ("stacked", expected)]:
        pinned = ComputeConfig.model_validate({"device": "auto", "engine": engine})
        assert place(column, pinned).method == choice
    monkeypatch.setattr(stacked_choice, "triton_works", lambda *_: True)
    pinned = ComputeConfig(device="auto", engine="stacked")
    assert place(column, pinned).method.kernels == "triton"


def test_what_computed_a_column_is_in_its_record(noise: Dataset, tmp_path: Path) -> None:
    """On a CPU, told to use torch's grouped convolutions in place of the kernels in C++."""
    column, compute = plan(noise), ComputeConfig(device="cpu", workers=1)
    name = f"{replace(column.runs[0], base_lr=1.0, seed=0).hash} cpu"
    learn(choices={name: GROUPED})
    out = tmp_path / "m4"
    place_and_train(column, out, compute=compute, work=tmp_path / "work")
    timing = json.loads((out / "timing.json").read_text())["column"]
    assert (timing["engine"], timing["kernels"]) == ("stacked", "grouped")
    settings = column.runs[0].settings
    made_by = [
        made_by_on("stacked", "cuda", settings, kernels) for kernels in ("grouped", "triton")
    ]
    assert [text.split()[-1] for text in made_by] == ["grouped", "triton"]
    assert made_by_on("loop", "cuda", settings).split()[-1] == "torch"


def test_what_bench_measures_is_not_trusted_before_it_was_compared() -> None:
    from smallbatch.speed.bench.command import _learn
    from smallbatch.speed.bench.session import Series, Session

    pictures: Any = None
    loop, stacked = (Series(pictures, CASE, engine) for engine in ("loop", "stacked"))
    stacked.settled["kernels"] = "triton"
    for series in (loop, stacked):
        series.repeats.append({"images_per_second": 5.0, "share": 1.0})
    assert stacked.method == TRITON
    _learn(Session([loop, stacked], {}))
    assert known().rates == {workload_key(CASE): {LOOP.key: 5.0}}
