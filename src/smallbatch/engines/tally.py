"""The sums of a training, kept on its device, so that an update does not wait for the host."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Tally:
    """Sums over the updates of an epoch, and the update at which the run diverged.

    Reading a value waits for the device; nothing else here does. After the update at which the run
    diverged, nothing more is added.

    Attributes:
        loss: Summed training loss in nats, float64 ().
        correct: Number of right answers, int64 ().
        diverged_at: The first update, counted from 1, at which the loss, or any weight after it,
            was not finite; 0 if there is none. int64 ().
    """

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.diverged_at = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, update: int, loss: Tensor, correct: Tensor, finite: Tensor) -> None:
        """Add an update.

        Args:
            update: The number of the update, counted from 1.
            loss: The summed loss of its batch, ().
            correct: The number of right answers in its batch, ().
            finite: Whether all weights are finite after it, bool ().
        """
        over = self.diverged_at != 0
        fine = (loss.abs() < math.inf) & finite  # three times as fast as isfinite()
        # Filled with 0 rather than multiplied by it, because 0 · NaN is NaN.
        self.loss += loss.masked_fill(over, 0)
        self.correct += correct.masked_fill(over, 0)
        self.diverged_at.masked_fill_(~(over | fine), update)

    def clear(self) -> None:
        """Set the sums to 0 for a new epoch."""
        self.loss.zero_()
        self.correct.zero_()

    def restore(self, loss: float, correct: int, diverged_at: int) -> None:
        """Continue from these values."""
        self.loss.fill_(loss)
        self.correct.fill_(correct)
        self.diverged_at.fill_(diverged_at)
