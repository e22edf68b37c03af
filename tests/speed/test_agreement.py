"""The first update of a way against the loop engine's: wrong numbers are found, right ones pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from smallbatch.config.study import Optimizer
from smallbatch.engines.lanes.layers import Shortcut
from smallbatch.engines.lanes.torch import lanes as torch_lanes
from smallbatch.engines.lanes.torch.convs import Grouped
from smallbatch.engines.lanes.triton.layers import TritonLayers
from smallbatch.errors import UserError, WorkerLost
from smallbatch.execution import workers
from smallbatch.placement.workload import Method, Workload
from smallbatch.speed import agreement
from smallbatch.speed.agreement import LIMIT, Disagreement, check, worst

CASE = Workload("resnet8", "batch", None, True, "float32", 1, 8, 8, 10, 4, 4, "cpu", 1)
GROUPED, TRITON = Method("stacked", kernels="grouped"), Method("stacked", kernels="triton")


@pytest.fixture(autouse=True)
def unknown() -> Iterator[None]:
    agreement._loops.cache_clear()
    yield
    agreement._loops.cache_clear()


def weights(*values: float) -> dict[str, Tensor]:
    return {"w": torch.tensor(values)}


def test_a_deviation_is_relative_to_the_loops_update_and_the_worst_run_counts() -> None:
    """|(3, 4)| = 5 moved; (0.3, 0.4) beside that is a tenth."""
    start, expected = weights(1.0, 1.0), weights(4.0, 5.0)
    near = (weights(4.3, 5.4), expected, start)
    same = (expected, expected, start)
    assert worst([same, near, same]) == pytest.approx(0.1)
    assert worst([same]) == 0.0
    assert worst([({}, {}, start)]) == 0.0  # both diverged
    for found in ({}, weights(math.nan, 5.0), weights(math.inf, 5.0)):
        assert worst([near, (found, expected, start), same]) == math.inf
    assert worst([(expected, start, start)]) == math.inf  # the loop's weights did not move


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_grouped_convolutions_make_the_loops_first_update(norm: str) -> None:
    workload = replace(CASE, norm=norm, lanes=10, workers=2)
    check(workload, GROUPED)
    start, expected = agreement._loops(workload, None)
    assert len(expected) == agreement.COMPARED
    found = agreement.first_updates(workload, GROUPED)
    assert len(found) == 10
    deviation = worst([(found[name], expected[name], start[name]) for name in expected])
    assert 0 < deviation < 1e-4


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adamw"])
def test_so_do_optimisers_with_moments(optimizer: Optimizer) -> None:
    check(replace(CASE, optimizer=optimizer), GROUPED)


def test_adamws_update_errs_as_its_gradient_does() -> None:
    """Not as the gradient's sign, which in bf16 is wrong for many weights of small gradients."""

    def deviation(optimizer: Optimizer) -> float:
        agreement._loops.cache_clear()
        workload = replace(CASE, norm="none", optimizer=optimizer)
        start, expected = agreement._loops(workload, None)
        found = agreement.first_updates(replace(workload, precision="bf16"), GROUPED)
        names = zip(found, expected, strict=True)  # of other hashes: the precision is a setting
        return worst([(found[one], expected[two], start[two]) for one, two in names])

    assert deviation("adamw") == pytest.approx(deviation("sgd"), rel=0.1)


@pytest.mark.slow
def test_triton_makes_the_loops_first_update() -> None:
    check(CASE.at(2), TRITON)


class _Scaled(Grouped):
    """As where a kernel drops part of a sum."""

    def weight_gradient(self, g: Tensor, x: Tensor, out: Tensor, stride: int) -> None:
        super().weight_gradient(g, x, out, stride)
        out.mul_(0.98)


class _OneLane(Grouped):
    """Wrong in the last lane alone, as where an offset overflows."""

    def input_gradient(
        self, g: Tensor, weight: Tensor, x: Tensor, stride: int, shortcut: Tensor | None = None
    ) -> Tensor:
        of_x = super().input_gradient(g, weight, x, stride, shortcut)
        of_x.unflatten(1, (len(weight), -1))[:, -1] = 0
        return of_x


class _Broken(Grouped):
    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        shortcut: Shortcut | None = None,
        relu: bool = False,
    ) -> Tensor:
        raise ValueError("does not compile\nwith details")


@pytest.mark.parametrize(
    ("kernels", "why"),
    [
        (_Scaled(), "its first update deviates from the loop's by 0.0"),
        (_OneLane(), "its first update deviates from the loop's by"),
        (_Broken(), "does not compile"),
    ],
)
def test_wrong_convolutions_are_found(
    monkeypatch: pytest.MonkeyPatch, kernels: Grouped, why: str
) -> None:
    monkeypatch.setattr(torch_lanes, "Grouped", lambda: kernels)
    with pytest.raises(Disagreement, match=why):
        check(CASE, GROUPED)


def test_bad_input_and_lost_memory_are_not_disagreements(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = agreement._loops(CASE, None)
    monkeypatch.setattr(agreement, "_loops", lambda *_: expected)
    for error in (UserError("model: does not fit"), WorkerLost("memory ran out")):

        def fail(*_: Any, error: UserError = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(workers, "train_all", fail)
        with pytest.raises(type(error), match=str(error)):
            check(CASE, GROUPED)


def test_every_precision_has_a_limit_far_below_an_update() -> None:
    assert set(LIMIT) == {"float32", "tf32", "bf16"}
    assert max(LIMIT.values()) <= 0.5
    assert LIMIT["float32"] == 1e-2


def test_it_is_triton_that_a_way_by_triton_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("asked for")

    monkeypatch.setattr(TritonLayers, "__init__", fail)
    with pytest.raises(Disagreement, match="asked for"):
        check(CASE.at(2), TRITON)
