"""Whole updates by Triton's kernels against the loop engine, and lanes beside other lanes."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smallbatch.config.study import StudyConfig
from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.lanes.torch.lanes import make_step
from smallbatch.engines.lanes.triton import convs, norms
from smallbatch.engines.resident import Resident, Split, load_resident
from smallbatch.protocol.outcome import RunResult
from smallbatch.protocol.run import Run
from tests.engines.lanes.test_trainer import assert_equal, assert_near, study
from tests.engines.lanes.triton.tensors import DEVICE
from tests.noise import make_dataset


@pytest.fixture
def quiet() -> Generator[None, None, None]:
    """No warnings of NumPy's, by which Triton's interpreter computes, where a lane overflows."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(autouse=True)
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight gradients in parts, however small the images are."""
    monkeypatch.setattr(convs, "SHARE", 0.1)
    monkeypatch.setattr(convs, "PARTS", 2)


def data_of(n: int, size: int | tuple[int, int], device: torch.device = DEVICE) -> Resident:
    """Not cropped, which would leave most images this small black; two test images."""
    data = load_resident(make_dataset(n=n, test=2, size=size), augment=False, device=device)
    return dataclasses.replace(data, test=Split(data.test.images[:2], data.test.labels[:2]))


def settings(model: str, norm: str, **changes: Any) -> StudyConfig:
    return study(model, norm, epochs=1, **changes)


def train(runs: list[Run], data: Resident) -> list[RunResult]:
    return stacked.train_lanes(runs, data, kernels="triton", by_torch=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "norm", "m", "n", "size", "seeds"),
    [
        ("resnet8", "none", 3, 6, 3, [0]),
        ("resnet8", "batch", 5, 5, 3, [0, 1]),
        ("resnet8", "ghost", 9, 9, 3, [0]),
        ("resnet8", "group", 3, 3, 3, [0]),
        ("alexnet", "none", 3, 3, 4, [0]),
        ("alexnet", "none", 3, 3, (2, 5), [0]),
        # Batch norm of FC layers over few examples amplifies rounding; of this seed it does not.
        ("alexnet", "batch", 12, 12, 2, [1]),
    ],
)
def test_steps_equal_the_loop(
    monkeypatch: pytest.MonkeyPatch,
    model: str, norm: str, m: int, n: int, size: int | tuple[int, int],
    seeds: list[int],
) -> None:  # fmt: skip
    """One update or two, with batch norm in stretches; ghost batches of 5 and 4."""
    monkeypatch.setattr(norms, "WHOLE", 0)
    monkeypatch.setattr(norms, "STRETCH", 256)
    changes: dict[str, Any] = {"bn_batch_size": 5} if norm == "ghost" else {}
    own, data = settings(model, norm, **changes), data_of(n, size)
    runs = [Run(own, "f", m, 2.0 ** (-6 - seed), seed) for seed in seeds]
    for run, result in zip(runs, train(runs, data), strict=True):
        check(result, run, data)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_updates_with_moments_equal_the_loop(optimizer: str) -> None:
    """Two updates; AdamW's ε keeps it from whole steps by gradients that are only rounding."""
    more: dict[str, Any] = {"eps": 1e-2} if optimizer == "adamw" else {}
    own, data = settings("resnet8", "batch", optimizer=optimizer, **more), data_of(8, 3)
    run = Run(own, "f", 4, 2.0**-6 if optimizer == "adamw" else 2.0**-7, 0)
    result = train([run], data)[0]
    assert result.rows[-1]["updates"] == 2
    check(result, run, data)


def check(result: RunResult, run: Run, data: Resident) -> None:
    assert_near(result, loop.train(run, data), rtol=1e-5, atol=5e-6)
    before = loop.initial_model(run, data).state_dict()
    moved = max(float((result.weights[name].cpu() - before[name]).abs().max()) for name in before)
    assert moved > 1e-3


def test_one_step_equals_the_loop() -> None:
    data = data_of(4, 2)
    run = Run(settings("resnet8", "batch"), "f", 4, 2.0**-7, 0)
    check(train([run], data)[0], run, data)


def stepped(runs: list[Run], data: Resident, lost: int | None = None) -> list[Tensor]:
    """All that a step changes, with the lanes in front; weights of the lane ``lost`` are NaN."""
    with torch.no_grad():
        step, _ = make_step(runs, data, torch.float32, "triton")
        if lost is not None:
            step.net.lanes.theta[lost] = torch.nan
        step.tables.load(0)
        step()
    lanes, metrics = step.net.lanes, step.metrics
    assert len(lanes.partial) == 2
    return [lanes.theta, *lanes.statistics.values(), *metrics]


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_a_lanes_bits_do_not_depend_on_the_other_lanes() -> None:
    """Alone, and beside one of another seed that is not finite."""
    data, own = data_of(3, 2), settings("resnet8", "batch")
    run = Run(own, "f", 3, 2.0**-7, 1)
    alone = stepped([run], data)
    beside = stepped([Run(own, "f", 3, 2.0**-9, 0), run], data, lost=0)
    assert beside[-1].tolist() == [1, 0]
    for one, two in zip(alone, beside, strict=True):
        assert torch.equal(one[0], two[1])


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_runs_beside_one_that_diverges_end_as_without_it() -> None:
    """It leaves, and the other goes on in its place."""
    data, own = data_of(4, 2), settings("resnet8", "batch")
    runs = [Run(own, "f", 2, lr, seed) for seed, lr in enumerate((2.0**127, 2.0**-8))]
    everyone = train(runs, data)
    assert [result.outcome for result in everyone] == ["diverged", "finished"]
    (alone,) = train(runs[1:], data)
    assert_equal(alone, everyone[1])
