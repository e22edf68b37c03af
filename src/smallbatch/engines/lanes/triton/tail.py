"""The part of a step after the network, in three Triton kernels: loss, update and notes.

Torch would launch some 40 kernels for few numbers, which at m = 2 takes as long as the
convolutions.
"""

# ruff: noqa: N803 - constants of a kernel are in upper case
# pyright: reportArgumentType=false, reportCallIssue=false, reportUnknownVariableType=false
# pyright: reportMissingParameterType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from smallbatch.engines.lanes.step import Metrics, TorchTail
from smallbatch.engines.lanes.weights import SPAN, LaneWeights
from smallbatch.protocol.optimiser import MOMENTS, Constants


@triton.jit(do_not_specialize=["m", "example", "its_lane"])
def score(
    logits, labels, source, gradient, loss, correct, m, example, its_lane,
    CLASSES: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A lane's summed cross-entropy, its gradient in the logits, and its right answers."""
    lane = tl.program_id(0)
    its_labels = labels + tl.load(source + lane) * m
    k = tl.arange(0, PADDED)
    losses, hits = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.int32)
    for n0 in range(0, m, BLOCK):
        n = n0 + tl.arange(0, BLOCK)
        there = (n < m)[:, None] & (k < CLASSES)[None, :]
        at = (n * example + lane * its_lane)[:, None] + k[None, :]
        z = tl.load(logits + at, mask=there, other=float("-inf"))
        z = tl.where((n < m)[:, None], z, 0.0)
        label = tl.load(its_labels + n, mask=n < m, other=0)
        hit = k[None, :] == label[:, None]
        top = tl.max(z, 1)
        e = tl.exp(z - top[:, None])
        total = tl.sum(e, 1)
        right = tl.sum(tl.where(hit, z, 0.0), 1)
        losses += tl.where(n < m, tl.log(total) + top - right, 0.0)
        # NaN counts as the largest, as for torch's argmax.
        best = tl.argmax(tl.where(z != z, float("inf"), z), 1)
        hits += tl.where((n < m) & (best == label), 1, 0)
        result = e / total[:, None] - tl.where(hit, 1.0, 0.0)
        tl.store(gradient + at, result, mask=there)
    tl.store(loss + lane, tl.sum(losses))
    tl.store(correct + lane, tl.sum(hits))


@triton.jit
def descend(
    theta, first, second, partial, used, rates, counter, bad, parameters, lanes,
    m, beta1, new1, beta2, new2, eps, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One update of a block of a lane's weights; sets its ``bad`` to 1 if a weight overflows.

    ``used`` has the number of parts of the block's gradient; ``first`` and ``second`` are the
    moments, if there are any; ``new1`` and ``new2`` are 1 − β. KIND is the optimiser's place in
    MOMENTS.
    """
    lane = tl.program_id(1)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < parameters
    at = lane.to(tl.int64) * parameters + i
    rates += tl.load(counter) * ((3 if KIND == 3 else 2) * lanes) + lane
    decay, rate = tl.load(rates), tl.load(rates + lanes)
    weights = tl.load(theta + at, mask=mask, other=0.0)
    gradient = tl.load(partial + at, mask=mask, other=0.0)
    for part in range(1, tl.load(used + tl.program_id(0))):
        there = partial + tl.num_programs(1).to(tl.int64) * parameters * part
        gradient += tl.load(there + at, mask=mask, other=0.0)
    if KIND == 0:
        weights = weights * decay
        weights -= gradient * rate
    elif KIND == 3:
        gradient = gradient / m
        a = beta1 * tl.load(first + at, mask=mask, other=0.0) + new1 * gradient
        b = beta2 * tl.load(second + at, mask=mask, other=0.0) + new2 * gradient * gradient
        tl.store(first + at, a, mask=mask)
        tl.store(second + at, b, mask=mask)
        size = tl.sqrt(b) / tl.load(rates + 2 * lanes) + eps
        weights = weights * decay - rate * (a / size)
    else:
        gradient += decay * weights
        v = beta1 * tl.load(first + at, mask=mask, other=0.0) + gradient
        tl.store(first + at, v, mask=mask)
        weights -= rate * (gradient + beta1 * v if KIND == 2 else v)
    tl.store(theta + at, weights, mask=mask)
    wrong = tl.max(tl.where(tl.abs(weights) < float("inf"), 0, 1), 0)
    tl.atomic_max(bad + lane, wrong, mask=wrong > 0)


@triton.jit
def note(
    loss, correct, bad, counter, loss_sum, correct_sum, seen, diverged, lanes, PADDED: tl.constexpr
):  # fmt: skip
    """Add an update to the metrics of the lanes that were alive, and mark those that diverge.

    Also increases the counter.
    """
    k = tl.arange(0, PADDED)
    mask = k < lanes
    now = tl.load(loss + k, mask=mask, other=0.0)
    wrong = tl.load(bad + k, mask=mask, other=0)
    ended = tl.load(diverged + k, mask=mask, other=1)
    before = ended == 0
    total = tl.load(loss_sum + k, mask=mask, other=0.0)
    tl.store(loss_sum + k, total + tl.where(before, now, 0.0).to(tl.float64), mask=mask)
    hits = tl.load(correct + k, mask=mask, other=0)
    total = tl.load(correct_sum + k, mask=mask, other=0)
    tl.store(correct_sum + k, total + tl.where(before, hits, 0).to(tl.int64), mask=mask)
    total = tl.load(seen + k, mask=mask, other=0)
    tl.store(seen + k, total + before.to(tl.int64), mask=mask)
    fine = (tl.abs(now) < float("inf")) & (wrong == 0)  # False for NaN
    update = tl.load(counter) + 1
    tl.store(counter, update)
    tl.store(diverged + k, tl.where(before & ~fine, update, ended), mask=mask)
    tl.store(bad + k, tl.zeros((PADDED,), tl.int32), mask=mask)


# Typed Any, because the kernels' constants are passed as plain numbers.
_SCORE: Any = score
_DESCEND: Any = descend
_NOTE: Any = note


class TritonTail:
    """See :class:`~engines.lanes.step.Tail`."""

    def __init__(self, lanes: int, device: torch.device) -> None:
        self.loss = torch.zeros(lanes, device=device)
        self.correct, self.bad = torch.zeros(2, lanes, device=device, dtype=torch.int32)

    def score(self, logits: Tensor, labels: Tensor, source: Tensor) -> Tensor:
        """See :class:`~engines.lanes.step.Tail`."""
        m, k, classes = logits.shape
        logits = logits if logits.stride(2) == 1 else logits.contiguous()
        gradient = torch.empty_strided(logits.shape, logits.stride(), device=logits.device)
        padded = _power(classes)
        _SCORE[(k,)](
            logits, labels, source, gradient, self.loss, self.correct, m, *logits.stride()[:2],
            CLASSES=classes, PADDED=padded, BLOCK=max(2, min(_power(m), 1024 // padded)),
        )  # fmt: skip
        return gradient

    def settle(self, lanes: LaneWeights, rates: Tensor, metrics: Metrics, counter: Tensor) -> None:
        """See :class:`~engines.lanes.step.Tail`."""
        k, parameters = lanes.theta.shape
        numbers = lanes.optimiser
        first, second = [*lanes.moments, lanes.theta, lanes.theta][:2]
        _DESCEND[(-(-parameters // SPAN), k)](
            lanes.theta, first, second, lanes.partial, lanes.used, rates, counter, self.bad,
            parameters, k, float(numbers.batch_size), numbers.beta1, 1 - numbers.beta1,
            numbers.beta2, 1 - numbers.beta2, numbers.eps,
            KIND=list(MOMENTS).index(numbers.optimizer), BLOCK=SPAN,
        )  # fmt: skip
        _NOTE[(1,)](
            self.loss, self.correct, self.bad, counter, *metrics, k, PADDED=_power(k)
        )  # fmt: skip


def agrees(device: torch.device) -> bool:
    """Whether these kernels agree with torch on a device."""
    theta, logits = torch.randn(2, 1500, device=device), torch.randn(3, 2, 10, device=device)
    labels = torch.tensor([[1, 3, 5], [2, 4, 9]], device=device)
    source = torch.tensor([1, 0], device=device)
    kinds = [Constants(name, 3, 0.9, 0.99, 1e-6) for name in MOMENTS]
    return all(_agrees(kind, theta, logits, labels, source) for kind in kinds)


def _agrees(kind: Constants, theta: Tensor, logits: Tensor, labels: Tensor, source: Tensor) -> bool:
    device, found = theta.device, list[list[Tensor]]()
    numbers = [[0.9, 0.8], [0.1, 0.2], [0.3, 0.4]][: 3 if kind.optimizer == "adamw" else 2]
    rates = torch.tensor([[[0.1, 0.1]] * len(numbers), numbers], device=device)
    for tail in (TritonTail(2, device), TorchTail()):
        shapes = {"w": torch.Size([1500])}
        lanes = LaneWeights(theta.clone(), shapes, {}, {}, optimiser=kind)
        for moment in lanes.moments:
            moment.copy_(theta.flip(0).abs())
        lanes.split({"w": 2})
        lanes.partial.copy_(theta.flip(1))
        lanes.partial[1] *= 2
        lanes.partial[0, 1, 7] = torch.nan
        counter = torch.ones(1, dtype=torch.int64, device=device)
        zeros = [torch.zeros(2, dtype=torch.int64, device=device) for _ in range(3)]
        metrics = Metrics(torch.zeros(2, dtype=torch.float64, device=device), *zeros)
        gradient = tail.score(logits.clone(), labels, source)
        tail.settle(lanes, rates, metrics, counter)
        found.append([gradient, lanes.theta, *lanes.moments, counter, *metrics])
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)
        for a, b in zip(*found, strict=True)
    )


def _power(n: int) -> int:
    return 1 << max(1, (n - 1).bit_length())
