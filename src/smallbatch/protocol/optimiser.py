"""The optimisers: what an update does with the gradient of the summed loss, and with which numbers.

With m examples and the gradient G = Σ∇L_i(θ) of their summed loss, an update is

    sgd        θ ← θ·(1 − η·λ) − η̃·G                                        (eq. 5)
    momentum   v ← μ·v + (G + m·λ·θ),   θ ← θ − η̃·v
    nesterov   v ← μ·v + g with g = G + m·λ·θ,   θ ← θ − η̃·(g + μ·v)
    adamw      a ← β₁·a + (1 − β₁)·g with g = G/m,   b ← β₂·b + (1 − β₂)·g²,
               θ ← θ·(1 − η·λ) − η/(1 − β₁ᵗ) · a / (√b/√(1 − β₂ᵗ) + ε) at update t = 1, 2, …

They are those of `torch.optim.SGD` and `torch.optim.AdamW`. The first three scale with G, so that
η̃ = η/m is what one example moves; with momentum it moves η̃/(1 − μ) in all. AdamW's update does
not scale with the gradient: its learning rate is η at every m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from smallbatch.config.study import Optimizer, StudyConfig

MOMENTS: dict[Optimizer, int] = {"sgd": 0, "momentum": 1, "nesterov": 1, "adamw": 2}
"""How many numbers an optimiser keeps for each weight: v, or a and b."""

LARGEST = math.ldexp(1 - 2.0**-24, 128)
"""The largest number of single precision: a rate beyond it diverges just as well."""


@dataclass(frozen=True)
class Constants:
    """An optimiser, and its numbers that stay the same from update to update.

    Attributes:
        optimizer: Its name.
        batch_size: m.
        beta1: β₁ of AdamW, μ of momentum and nesterov.
        beta2: β₂ of AdamW.
        eps: ε of AdamW.
    """

    optimizer: Optimizer = "sgd"
    batch_size: int = 1
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0


PLAIN = Constants()
"""Plain SGD."""


def betas_at(study: StudyConfig, batch_size: int) -> tuple[float, float]:
    """AdamW's β₁ and β₂ at m.

    With ``beta2_examples`` = H the second is 2^(−m/H): a squared gradient counts half after H
    examples, whatever m is.
    """
    beta1, beta2 = study.betas or (0.0, 0.0)
    if study.beta2_examples is not None:
        beta2 = 2.0 ** (-batch_size / study.beta2_examples)
    return beta1, beta2


def constants(study: StudyConfig, batch_size: int) -> Constants:
    """What a study's optimiser keeps the same from update to update at m."""
    if study.optimizer == "adamw":
        beta1, beta2 = betas_at(study, batch_size)
        return Constants(study.optimizer, batch_size, beta1, beta2, study.eps or 0.0)
    return Constants(study.optimizer, batch_size, study.momentum or 0.0)


def coefficients(
    study: StudyConfig, batch_size: int, lrs: NDArray[np.float64], first: int
) -> NDArray[np.float64]:
    """The numbers that change from update to update and from run to run.

    Args:
        study: The settings.
        batch_size: m.
        lrs: η as `scheduled_lr` gives it, (updates, K).
        first: The number of the first of these updates, from 0.

    Returns:
        (updates, 2, K) or, for AdamW, (updates, 3, K):

        - ``sgd``: 1 − η·λ and η̃;
        - ``momentum``, ``nesterov``: m·λ and η̃;
        - ``adamw``: 1 − η·λ, η/(1 − β₁ᵗ) and √(1 − β₂ᵗ).
    """
    decay = study.weight_decay
    if study.optimizer == "sgd":
        return np.stack([1 - lrs * decay, lrs / batch_size], 1)
    if study.optimizer != "adamw":
        return np.stack([np.full_like(lrs, batch_size * decay), lrs / batch_size], 1)
    first_bias, second_bias = corrections(study, batch_size, first, len(lrs))
    roots = np.broadcast_to(second_bias[:, None], lrs.shape)
    return np.stack([1 - lrs * decay, lrs / first_bias[:, None], roots], 1)


def corrections(
    study: StudyConfig, batch_size: int, first: int, updates: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AdamW's 1 − β₁ᵗ and √(1 − β₂ᵗ) of updates ``first``, … from 0, (updates,) each."""
    beta1, beta2 = betas_at(study, batch_size)
    t = np.arange(first + 1, first + updates + 1)
    return 1 - np.power(beta1, t), np.sqrt(1 - np.power(beta2, t))
