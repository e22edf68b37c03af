"""What a training takes of the machine: few samples however long it is, and gone on with."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest

from smallbatch.execution import sampler as module
from smallbatch.execution.sampler import Sampler
from smallbatch.records.system import MOST, Sample, SystemUse, read_system


def sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticks: int) -> list[Any]:
    """The samples of a training that asks every second for so long, by a clock that is set."""
    clock = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(module.time, "time", lambda: clock[0])
    sampler = Sampler(tmp_path / "system", "cpu")
    for _ in range(ticks):
        clock[0] += 1.0
        sampler.tick()
    content = sampler.finish()
    assert content is not None
    (tmp_path / "system.json").write_bytes(content)
    return json.loads(content)["samples"]


def test_a_short_training_has_one_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [sample] = sampled(tmp_path, monkeypatch, 2)
    assert sample["values"].keys() == {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
    }
    assert 0 <= sample["values"]["cpu_utilization_percentage"] <= 100
    assert sample["values"]["system_memory_usage_megabytes"] > 10


def test_a_long_training_has_few_that_span_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = sampled(tmp_path, monkeypatch, 20_000)
    assert MOST / 2 <= len(samples) <= MOST
    times = [sample["time"] / 1000 for sample in samples]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times[0] < 1000 + 200
    assert times[-1] == 1000 + 20_000
    assert max(gaps) <= 2 * min(gaps[:-1])
    found = read_system(tmp_path)
    assert found is not None
    assert found.interval == pytest.approx(5 * 2**5)


def test_neighbours_are_joined_to_their_mean() -> None:
    samples = [Sample(time=i + 1, values={"a": float(i)} | ({"b": 1.0} if i else {}))
               for i in range(3)]  # fmt: skip
    joined = SystemUse(interval=5.0, samples=tuple(samples)).joined()
    assert joined.interval == 10
    assert [(it.time, it.values) for it in joined.samples] == [
        (2, {"a": 0.5, "b": 1.0}),
        (3, {"a": 2.0, "b": 1.0}),
    ]


def test_an_interrupted_training_goes_on_with_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "INTERVAL_S", 0.01)
    monkeypatch.setattr(module, "_SAVE_S", 0.0)
    first = Sampler(tmp_path / "system", "cpu")
    for _ in range(3):
        time.sleep(0.02)
        first.tick()
    before = json.loads(first.content() or b"")["samples"]
    assert len(before) == 3
    second = Sampler(tmp_path / "system", "cpu")
    second.resume()
    time.sleep(0.02)
    second.tick()
    assert json.loads(second.content() or b"")["samples"][:3] == before


@pytest.mark.parametrize("content", [b"", b"{}", b'{"interval":5,"samples":[{"time":1}]}'])
def test_damaged_samples_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "system").write_bytes(content)
    sampler = Sampler(tmp_path / "system", "cpu")
    sampler.resume()
    assert sampler.content() is None


def test_a_look_costs_next_to_nothing(tmp_path: Path) -> None:
    """Nor does asking whether it is time, which the trainer does many times a second."""
    sampler = Sampler(tmp_path / "system", "cpu")
    began = time.process_time()
    for _ in range(10_000):
        sampler.tick()
    asking = time.process_time() - began
    for _ in range(50):
        sampler._take()
    looking = time.process_time() - began - asking
    assert asking / 10_000 < 1e-4
    assert looking / 50 < 0.02  # of every five seconds
