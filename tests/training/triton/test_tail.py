"""Loss, update and notes by Triton's kernels against torch's operations and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smallbatch.training.stacked.lanes import Lanes
from smallbatch.training.stacked.step import Metrics, TorchTail
from smallbatch.training.stacked.triton import tail as triton_tail
from smallbatch.training.stacked.triton.tail import TritonTail
from tests.training.triton.tensors import DEVICE

K = 3


def lanes(parameters: int) -> Lanes:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(K, parameters, generator=generator).to(DEVICE)
    made = Lanes(theta, {"w": torch.Size([parameters])}, {}, {})
    made.gradient.copy_(torch.randn(K, parameters, generator=generator))
    return made


def metrics() -> Metrics:
    zeros = [torch.zeros(K, dtype=torch.int64, device=DEVICE) for _ in range(3)]
    return Metrics(torch.zeros(K, dtype=torch.float64, device=DEVICE), *zeros)


@pytest.mark.parametrize(("m", "classes"), [(2, 10), (5, 3), (70, 100), (33, 2)])
def test_loss_hits_and_gradient_are_torchs(m: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(m)
    logits = (10 * torch.randn(m, K, classes, generator=generator)).to(DEVICE)
    # By example and lane, laid out the other way round as the tables give them.
    labels = torch.randint(classes, (K, m), generator=generator).to(DEVICE).t()
    mine, theirs = TritonTail(K, DEVICE), TorchTail()
    gradient, expected = mine.score(logits, labels), theirs.score(logits.clone(), labels)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine.loss, theirs.loss, rtol=1e-5, atol=1e-5)
    assert mine.correct.tolist() == theirs.correct.tolist()


@pytest.mark.parametrize("parameters", [7, 2500])
def test_updates_and_notes_are_torchs(parameters: int) -> None:
    rates = torch.tensor([[0.9, 0.99, 1.0], [0.1, 0.01, 0.5]], device=DEVICE)
    found: list[list[Tensor]] = []
    for tail in (TritonTail(K, DEVICE), TorchTail()):
        own, sums = lanes(parameters), metrics()
        for update in (1, 2, 3):
            tail.loss = torch.tensor([1.0, 2.0, math.nan if update > 1 else 3.0], device=DEVICE)
            tail.correct = torch.tensor([1, 0, 2], device=DEVICE, dtype=torch.int32)
            if update == 3:
                own.gradient[1, -1] = math.inf
            tail.settle(own, rates, sums, torch.tensor([update], device=DEVICE))
        found.append([own.theta, *sums])
    mine, theirs = found
    torch.testing.assert_close(mine[0], theirs[0], rtol=1e-6, atol=1e-6)
    assert [value.tolist()[:2] for value in mine[1:]] == [
        value.tolist()[:2] for value in theirs[1:]
    ]
    loss, correct, seen, diverged = (value.tolist() for value in mine[1:])
    assert loss[:2] == [3.0, 6.0]
    assert math.isnan(loss[2])
    assert (correct, seen, diverged) == ([3, 0, 4], [3, 3, 2], [0, 3, 2])


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_make_the_loss_so_in_their_lane_alone(bad: float) -> None:
    logits = torch.zeros(4, K, 10, device=DEVICE)
    logits[1, 2, 5] = bad
    labels = torch.full((4, K), 5, device=DEVICE)
    tail, expected = TritonTail(K, DEVICE), TorchTail()
    gradient = tail.score(logits, labels)
    expected.score(logits.clone(), labels)
    assert tail.loss.isfinite().tolist() == [True, True, False]
    assert expected.loss.isfinite().tolist() == [True, True, False]
    assert gradient[:, :2].isfinite().all()
