"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


Outcome = Literal["finished", "diverged"]
Row = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    Attributes:
        outcome: ``finished``, or ``diverged`` if a loss or weight was not finite.
        diverged_at: The update, counted from 1, at which the run diverged.
        rows: A row per epoch; the last row of a diverged run is the epoch in which it diverged.
        final: Losses and accuracies of the final weights in evaluation mode over whole splits; all
            None for a diverged run.
        parameters: The number of trained parameters.
        weights: The final state dict, on the CPU; empty for a diverged run.
    """

    outcome: Outcome
    diverged_at: int | None
    rows: list[Row]
    final: dict[str, float | None]
    parameters: int
    weights: dict[str, Tensor]
