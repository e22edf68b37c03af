"""What a training has come to, kept on its device, so that an update need not wait for the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Tally:
    """Sums over the updates of an epoch, and the update at which the run diverged.

    Reading a value waits for the device; nothing else here does. The sums end with the update at
    which the run diverged, whatever is added after it.

    Attributes:
        loss: summed training loss in nats, float64 ().
        correct: right answers, int64 ().
        diverged_at: the first update, counted from 1, whose loss or any weight after it was not
            finite; 0 while there is none. int64 ().
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.diverged_at = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, update: int, loss: Tensor, correct: Tensor, finite: Tensor) -> None:
        """Note an update.

        Args:
            update: its number, counted from 1.
            loss: summed over its batch, ().
            correct: right answers in its batch, ().
            finite: whether all weights are finite after it, bool ().
        """
        over = self.diverged_at != 0
        fine = (loss.abs() < math.inf) & finite  # a third of the time that isfinite() takes
        # Filled, not multiplied: 0 · NaN is NaN.
        self.loss += loss.masked_fill(over, 0)
        self.correct += correct.masked_fill(over, 0)
        self.diverged_at.masked_fill_(~(over | fine), update)

    def clear(self) -> None:
        """Begin an epoch's sums."""
        self.loss.zero_()
        self.correct.zero_()

    def restore(self, loss: float, correct: int, diverged_at: int) -> None:
        """Go on from values that were read."""
        self.loss.fill_(loss)
        self.correct.fill_(correct)
        self.diverged_at.fill_(diverged_at)
