"""One update of all lanes, which leaves everything on the device, and its capture as a CUDA graph.

The step reads its batch and its learning rates from tables by a counter on the device, and notes
there which lanes diverge and when, so that nothing waits for the host between two updates. On a CPU
the same step simply runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from smallbatch.engines.lanes.inputs import Shared, Tables
from smallbatch.engines.lanes.weights import LaneWeights

WARM_UP = 3  # steps before a capture: libraries set themselves up, kernels are compiled


class Net(Protocol):
    """A network of K lanes."""

    lanes: LaneWeights

    def forward(self, shared: Shared, *, training: bool) -> Tensor:
        """Images → logits (m, K, classes)."""
        ...

    def backward(self, g: Tensor) -> None:
        """Leave the gradients in the lanes; ``g`` is that of the logits."""
        ...


class Metrics(NamedTuple):
    """An epoch's sums over the updates that a lane was alive for, (K,) each.

    Attributes:
        loss: summed cross-entropy in nats.
        correct: right answers.
        seen: updates, the one at which a lane diverged included.
        diverged: 1 + the epoch's updates before that one; 0 while it is alive.
    """

    loss: Tensor
    correct: Tensor
    seen: Tensor
    diverged: Tensor


class Tail(Protocol):
    """What comes after the network in a step."""

    def score(self, logits: Tensor, labels: Tensor, source: Tensor) -> Tensor:
        """Gradient of the summed cross-entropy in the logits (m, K, classes); keeps the losses.

        ``labels`` are (S, m); ``source`` says which of the S each lane has, (K,).
        """
        ...

    def settle(self, lanes: LaneWeights, rates: Tensor, metrics: Metrics, counter: Tensor) -> None:
        """Update the weights and note losses, hits and lanes that end.

        Args:
            lanes: weights and gradients.
            rates: 1 − η·λ and η̃ of each lane at each of the epoch's updates, (updates, 2, K).
            metrics: of the epoch.
            counter: the epoch's updates before this one, (1,); moved on.
        """
        ...


class TorchTail:
    """By torch's operations."""

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
        net: the network of the lanes.
        tables: their batches and learning rates.
        make_tail: of how many lanes on which device; by default torch's.
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
        """Gather, augment, forward, backward, update, note."""
        shared, labels = self.tables.next()
        logits = self.net.forward(shared, training=True)
        self.net.backward(self.tail.score(logits, labels, shared.source))
        self.tail.settle(self.net.lanes, self.tables.rates, self.metrics, self.tables.counter)

    def state(self) -> list[Tensor]:
        """All that a step changes."""
        lanes = self.net.lanes
        return [lanes.theta, *lanes.statistics.values(), self.tables.counter, *self.metrics]

    def alive(self) -> list[bool]:
        """Whether each lane has not diverged; waits for the device."""
        return (self.metrics.diverged == 0).tolist()

    def clear(self) -> None:
        """Begin an epoch: the sums start at 0; lanes that have diverged stay so."""
        for sums in (self.metrics.loss, self.metrics.correct, self.metrics.seen):
            sums.zero_()

    def keep(self, index: Tensor) -> None:
        """Drop all lanes but those of ``index``, here alone."""
        self.metrics = Metrics(*[sums[index] for sums in self.metrics])
        self.tail = self.make_tail(len(index), index.device)


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (m, K) of logits (m, K, classes), and the gradient of their sum in the logits."""
    log_p = logits.log_softmax(2)
    hit = labels[:, :, None] == torch.arange(logits.shape[2], device=logits.device)
    losses = -log_p.gather(2, labels[:, :, None])[:, :, 0]
    return losses, log_p.exp_().add_(hit, alpha=-1)


def capture(step: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """A CUDA graph of the step; a call replays it. The state is left as it was.

    Args:
        step: with static shapes and addresses, without any wait for the device.
        state: tensors that it changes.
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
            restore()  # at once, so that the counter never leaves the tables
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
