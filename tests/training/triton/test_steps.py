"""Whole updates by Triton's kernels against the loop engine, and lanes beside other lanes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from smallbatch.config import StudyConfig
from smallbatch.training import loop, stacked
from smallbatch.training.loop import RunResult
from smallbatch.training.protocol import Run
from smallbatch.training.resident import Resident, Split, load_resident
from smallbatch.training.stacked.torch_lanes import make_step
from smallbatch.training.stacked.triton import convs, norms
from tests.training.conftest import make_dataset
from tests.training.test_stacked import assert_equal, assert_near, study
from tests.training.triton.tensors import DEVICE


@pytest.fixture(autouse=True)
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight gradients in parts, however small the images; batches in stretches, in the steps."""
    monkeypatch.setattr(convs, "SHARE", 1)
    monkeypatch.setattr(convs, "PARTS", 3)


def data_of(n: int, size: int, device: torch.device = DEVICE) -> Resident:
    """Two test images: each evaluation is a forward pass."""
    data = load_resident(make_dataset(n=n, test=2, size=size), augment=True, device=device)
    return dataclasses.replace(data, test=Split(data.test.images[:2], data.test.labels[:2]))


def settings(model: str, norm: str, **changes: Any) -> StudyConfig:
    return study(model, norm, augment=True, epochs=1, **changes)


def train(runs: list[Run], data: Resident) -> list[RunResult]:
    return stacked.train_lanes(runs, data, kernels="triton", by_torch=True)


def check(model: str, norm: str, m: int, n: int, size: int, **changes: Any) -> None:
    data = data_of(n, size)
    own = settings(model, norm, **changes)
    runs = [Run(own, "f", m, lr, seed) for lr, seed in ((2.0**-6, 0), (2.0**-7, 1))]
    for run, result in zip(runs, train(runs, data), strict=True):
        assert_near(result, loop.train(run, data), rtol=1e-5, atol=1e-5)
        before = loop.initial_model(run, data).state_dict()
        moved = max(float((result.weights[name] - before[name]).abs().max()) for name in before)
        assert moved > 1e-3


def test_one_step_equals_the_loop() -> None:
    check("resnet8", "batch", m=3, n=3, size=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "norm"),
    [
        *[("resnet8", norm) for norm in ("none", "batch", "ghost", "group")],
        *[("alexnet", norm) for norm in ("none", "batch")],
    ],
)
def test_two_steps_equal_the_loop(monkeypatch: pytest.MonkeyPatch, model: str, norm: str) -> None:
    monkeypatch.setattr(norms, "WHOLE", 0)
    monkeypatch.setattr(norms, "STRETCH", 256)
    changes: dict[str, Any] = {"bn_batch_size": 3} if norm == "ghost" else {}
    check(model, norm, m=5, n=10, size=4, **changes)


def stepped(runs: list[Run], data: Resident, updates: int) -> list[Tensor]:
    """All that steps change, with the lanes in front."""
    with torch.no_grad():
        step, _ = make_step(runs, data, torch.float32, "triton")
        step.tables.load(0)
        for _ in range(updates):
            step()
    lanes, metrics = step.net.lanes, step.metrics
    assert len(lanes.partial) == 3
    return [lanes.theta, *lanes.statistics.values(), *metrics]


def test_a_lanes_bits_do_not_depend_on_the_other_lanes() -> None:
    """Alone, beside others in another place, beside one that diverges at its first update."""
    data, own = data_of(4, 2), settings("resnet8", "batch")
    run = Run(own, "f", 2, 2.0**-7, 1)
    slow, fast = Run(own, "f", 2, 2.0**-9, 0), Run(own, "f", 2, 2.0**120, 1)
    alone = stepped([run], data, 2)
    beside = stepped([slow, run, fast], data, 2)
    assert beside[-1].tolist() == [0, 0, 1]
    for one, three in zip(alone, beside, strict=True):
        assert torch.equal(one[0], three[1])


@pytest.mark.slow
@pytest.mark.parametrize(("model", "norm"), [("resnet8", "none"), ("alexnet", "ghost")])
def test_runs_beside_one_that_diverges_end_as_without_it(model: str, norm: str) -> None:
    """It leaves, and the others go on in another place."""
    changes: dict[str, Any] = {"bn_batch_size": 2} if norm == "ghost" else {}
    data, own = data_of(8, 3), settings(model, norm, **changes)
    lrs = (2.0**120, 2.0**-9, 2.0**-8)
    runs = [Run(own, "f", 4, lr, seed) for seed, lr in enumerate(lrs)]
    everyone = train(runs, data)
    assert [result.outcome for result in everyone] == ["diverged", "finished", "finished"]
    for result, expected in zip(train(runs[1:], data), everyone[1:], strict=True):
        assert_equal(result, expected)
    (alone,) = train(runs[2:], data)
    assert_equal(alone, everyone[2])
