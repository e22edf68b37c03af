"""How a run ended, and what it left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


Outcome = Literal["finished", "diverged"]
Row = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """What one run left behind.

    Attributes:
        outcome: ``finished``, or ``diverged`` where a loss or weight was not finite.
        diverged_at: the update, counted from 1, at which that happened.
        rows: one per epoch; a diverged run's last row is the epoch it diverged in.
        final: losses and accuracies of the final weights in evaluation mode over whole splits;
            all None for a diverged run.
        parameters: number of trained parameters.
        weights: the final state dict, on the CPU; empty for a diverged run.
    """

    outcome: Outcome
    diverged_at: int | None
    rows: list[Row]
    final: dict[str, float | None]
    parameters: int
    weights: dict[str, Tensor]
