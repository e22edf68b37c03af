"""Loss, update and notes by Triton's kernels against torch's operations and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from smallbatch.config.study import Optimizer
from smallbatch.engines.lanes.step import Metrics, TorchTail
from smallbatch.engines.lanes.triton.tail import TritonTail, agrees
from smallbatch.engines.lanes.weights import SPAN, LaneWeights
from smallbatch.protocol.optimiser import MOMENTS, PLAIN, Constants
from tests.engines.lanes.triton.tensors import DEVICE

K = 3


def lanes(parameters: int, parts: int = 1, kind: Constants = PLAIN) -> LaneWeights:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(K, parameters, generator=generator).to(DEVICE)
    made = LaneWeights(theta, {"w": torch.Size([parameters])}, {}, {}, optimiser=kind)
    made.split({"w": parts})
    made.partial.copy_(torch.randn(parts, K, parameters, generator=generator))
    return made


def metrics() -> Metrics:
    zeros = [torch.zeros(K, dtype=torch.int64, device=DEVICE) for _ in range(3)]
    return Metrics(torch.zeros(K, dtype=torch.float64, device=DEVICE), *zeros)


@pytest.mark.parametrize(("m", "classes"), [(2, 10), (5, 3), (70, 100), (33, 2)])
def test_loss_hits_and_gradient_are_torchs(m: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(m)
    logits = (10 * torch.randn(m, K, classes, generator=generator)).to(DEVICE)
    labels = torch.randint(classes, (2, m), generator=generator).to(DEVICE)
    source = torch.tensor([0, 1, 1], device=DEVICE)
    mine, theirs = TritonTail(K, DEVICE), TorchTail()
    gradient = mine.score(logits, labels, source)
    expected = theirs.score(logits.clone(), labels, source)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[source].t().flatten(), reduction="none"
    )
    torch.testing.assert_close(mine.loss, losses.view(m, K).sum(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    assert mine.correct.tolist() == theirs.correct.tolist()


@pytest.mark.parametrize("optimizer", MOMENTS)
@pytest.mark.parametrize(("parameters", "parts"), [(7, 1), (2500, 3)])
def test_updates_and_notes_are_torchs(parameters: int, parts: int, optimizer: Optimizer) -> None:
    kind = Constants(optimizer, 7, 0.9, 0.99, 1e-6)
    rates = torch.tensor([[0.9, 0.99, 1.0], [0.1, 0.01, 0.5], [0.1, 0.2, 0.7]], device=DEVICE)
    rates = rates[: 3 if optimizer == "adamw" else 2]
    rates = torch.stack([rates * math.nan, rates, rates / 2, rates])  # of updates 0 to 3
    found: list[list[Tensor]] = []
    for tail in (TritonTail(K, DEVICE), TorchTail()):
        own, sums = lanes(parameters, parts, kind), metrics()
        counter = torch.ones(1, dtype=torch.int64, device=DEVICE)
        for update in (1, 2, 3):
            tail.loss = torch.tensor([1.0, 2.0, math.nan if update > 1 else 3.0], device=DEVICE)
            tail.correct = torch.tensor([1, 0, 2], device=DEVICE, dtype=torch.int32)
            if update == 3:
                own.partial[parts - 1, 1, -1] = math.nan if optimizer == "adamw" else math.inf
            tail.settle(own, rates, sums, counter)
            assert counter.item() == update + 1
        found.append([*sums, own.theta, *own.moments])
    mine, theirs = found
    for one, other in zip(mine[4:], theirs[4:], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6, equal_nan=True)
    assert [value.tolist()[:2] for value in mine[:4]] == [
        value.tolist()[:2] for value in theirs[:4]
    ]
    loss, correct, seen, diverged = (value.tolist() for value in mine[:4])
    assert loss[:2] == [3.0, 6.0]
    assert math.isnan(loss[2])
    assert (correct, seen, diverged) == ([3, 0, 4], [3, 3, 2], [0, 4, 3])


def test_an_update_reads_the_parts_that_are_used_and_no_others() -> None:
    """By spans of 1024 values: what has fewer parts than its span has zeros there."""
    theta = torch.zeros(2, 4 * SPAN, device=DEVICE)
    shapes = {"a": (SPAN - 5,), "b": (SPAN + 5,), "c": (2 * SPAN - 1,), "d": (1,)}
    made = LaneWeights(theta, {name: torch.Size(shape) for name, shape in shapes.items()}, {}, {})
    made.split({"a": 4, "b": 3})
    assert made.used.tolist() == [4, 3, 1, 1]
    for i, name in enumerate(shapes):
        made.parts(name).fill_(10.0**i)
    made.partial[1:, :, 2 * SPAN :] = math.nan
    made.partial[3, :, SPAN:] = math.nan
    rates = torch.tensor([[[1.0, 1.0], [-1.0, -2.0]]], device=DEVICE)
    sums = Metrics(*[value[:2] for value in metrics()])
    TritonTail(2, DEVICE).settle(
        made, rates, sums, torch.zeros(1, dtype=torch.int64, device=DEVICE)
    )
    for lane in range(2):
        for name, value in (("a", 4.0), ("b", 30.0), ("c", 100.0), ("d", 1000.0)):
            assert made.views[name][lane].eq((lane + 1) * value).all(), name


def test_the_trial_before_first_use_passes() -> None:
    assert agrees(DEVICE)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_make_the_loss_so_in_their_lane_alone(bad: float) -> None:
    logits = torch.zeros(4, K, 10, device=DEVICE)
    logits[1, 2, 5] = bad
    labels, source = torch.full((1, 4), 5, device=DEVICE), torch.zeros_like(metrics().seen)
    tail, expected = TritonTail(K, DEVICE), TorchTail()
    gradient = tail.score(logits, labels, source)
    expected.score(logits.clone(), labels, source)
    assert tail.loss.isfinite().tolist() == [True, True, False]
    assert expected.loss.isfinite().tolist() == [True, True, False]
    assert gradient[:, :2].isfinite().all()


@pytest.mark.parametrize("optimizer", MOMENTS)
def test_zeros_between_packed_weights_stay_zeros(optimizer: Optimizer) -> None:
    made = lanes(2500, 1, Constants(optimizer, 7, 0.9, 0.99, 1e-8))
    made.theta[:, 100:116] = 0
    made.partial[:, :, 100:116] = 0
    tail, counter = TritonTail(K, DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    tail.settle(made, torch.full((1, 3, K), 0.5, device=DEVICE), metrics(), counter)
    assert made.theta[:, 100:116].eq(0).all()
    assert made.theta[:, :100].ne(0).all()
