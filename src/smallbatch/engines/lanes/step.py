"""One update of all lanes, and its capture as a CUDA graph.

Nothing waits for the host between two updates. The step reads its batch and learning rates from
tables on the device, at the row given by a counter on the device, and also notes on the device
which lanes diverge and when. On a CPU the same step runs uncaptured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smallbatch.engines.lanes.inputs import Shared, Tables
from smallbatch.engines.lanes.weights import LaneWeights

WARM_UP = 3  # steps before a capture: libraries initialise in them and kernels are compiled


class Net(Protocol):
    """A network of K lanes."""

    lanes: LaneWeights

    def forward(self, shared: Shared, *, training: bool) -> Tensor:
        """Logits (m, K, classes)."""
        ...

    def backward(self, g: Tensor) -> None:
        """Write the gradients into the lanes; ``g`` is that of the logits."""
        ...


class Metrics(NamedTuple):
    """Sums over an epoch's updates, (K,) each; a lane is no longer counted after it diverges.

    Attributes:
        loss: Summed cross-entropy in nats.
        correct: Number of right answers.
        seen: Number of updates, including the one at which a lane diverged.
        diverged: The number within the epoch, from 1, of the update at which the lane diverged;
            0 for a lane that has not diverged.
    """

    loss: Tensor
    correct: Tensor
    seen: Tensor
    diverged: Tensor


class Tail(Protocol):
    """The part of a step after the network's forward pass: loss, update and notes."""

    def score(self, logits: Tensor, labels: Tensor, source: Tensor) -> Tensor:
        """Gradient of the summed cross-entropy with respect to the logits, (m, K, classes).

        Keeps the losses for `settle`.

        Args:
            logits: (m, K, classes).
            labels: (S, m), a batch for each seed.
            source: The row of ``labels`` that each lane uses, (K,).
        """
        ...

    def settle(self, lanes: LaneWeights, rates: Tensor, metrics: Metrics, counter: Tensor) -> None:
        """Update the weights, add to the metrics and note the lanes that diverge.

        Args:
            lanes: The weights and their gradients.
            rates: The numbers of each lane at each update of the epoch that
                `protocol.optimiser.coefficients` gives, (updates, 2 or 3, K).
            metrics: The epoch's sums.
            counter: The number of the epoch's updates before this one, (1,); is increased by 1.
        """
        ...


class TorchTail:
    """A `Tail` computed by torch's operations."""

    def score(self, logits: Tensor, labels: Tensor, source: Tensor) -> Tensor:
        """See `Tail`."""
        labels = labels.index_select(0, source).t()
        losses, gradient = cross_entropy(logits, labels)
        self.loss = losses.sum(0)
        self.correct = (logits.argmax(2) == labels).sum(0)
        return gradient

    def settle(self, lanes: LaneWeights, rates: Tensor, metrics: Metrics, counter: Tensor) -> None:
        """See `Tail`."""
        lanes.update(*rates.index_select(0, counter)[0])
        counter.add_(1)
        before = metrics.diverged == 0
        metrics.loss.add_(torch.where(before, self.loss, 0.0))
        metrics.correct.add_(self.correct * before)
        metrics.seen.add_(before)
        ends = before & ~(self.loss.isfinite() & lanes.finite())
        metrics.diverged.add_(ends * counter)


class Step:
    """One update of all lanes.

    Args:
        net: The network of the lanes.
        tables: The batches and learning rates of the lanes.
        make_tail: Makes the tail for a number of lanes on a device; by default torch's.
    """

    def __init__(
        self,
        net: Net,
        tables: Tables,
        make_tail: Callable[[int, torch.device], Tail] = lambda *_: TorchTail(),
    ) -> None:
        self.net, self.tables, self.make_tail = net, tables, make_tail
        k, device = len(net.lanes), net.lanes.theta.device
        self.metrics = Metrics(
            torch.zeros(k, dtype=torch.float64, device=device),
            *[torch.zeros(k, dtype=torch.int64, device=device) for _ in range(3)],
        )
        self.tail = make_tail(k, device)

    def __call__(self) -> None:
        """Read and augment the batch, run both passes, update the weights and note the results."""
        shared, labels = self.tables.next()
        logits = self.net.forward(shared, training=True)
        self.net.backward(self.tail.score(logits, labels, shared.source))
        self.tail.settle(self.net.lanes, self.tables.rates, self.metrics, self.tables.counter)

    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        lanes = self.net.lanes
        weights = [lanes.theta, *lanes.moments, *lanes.statistics.values()]
        return [*weights, self.tables.counter, *self.metrics]

    def alive(self) -> list[bool]:
        """Whether each lane is still training, that is, has not diverged; waits for the device."""
        return (self.metrics.diverged == 0).tolist()

    def clear(self) -> None:
        """Set the epoch's sums to 0; lanes that have diverged stay marked."""
        for sums in (self.metrics.loss, self.metrics.correct, self.metrics.seen):
            sums.zero_()

    def keep(self, index: Tensor) -> None:
        """Drop the metrics of all lanes but those of ``index``; net and tables are left alone."""
        self.metrics = Metrics(*[sums[index] for sums in self.metrics])
        self.tail = self.make_tail(len(index), index.device)


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (m, K) of logits (m, K, classes), and the gradient of their sum."""
    log_p = logits.log_softmax(2)
    hit = labels[:, :, None] == torch.arange(logits.shape[2], device=logits.device)
    losses = -log_p.gather(2, labels[:, :, None])[:, :, 0]
    return losses, log_p.exp_().add_(hit, alpha=-1)


def capture(step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """Capture the step as a CUDA graph and return a function that replays it.

    Args:
        step: The step; it has fixed shapes and addresses and never waits for the device.
        state: The tensors that it changes; they are restored after the capture.
    """
    before = [tensor.clone() for tensor in state]

    def restore() -> None:
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
            restore()  # after each step, so that the counter stays within the tables
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
