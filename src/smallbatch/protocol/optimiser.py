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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallbatch.config.study import Optimizer, StudyConfig

MOMENTS: dict[Optimizer, int] = {"sgd": 0, "momentum": 1, "nesterov": 1, "adamw": 2}
"""How many numbers an optimiser keeps for each weight: v, or a and b."""

LARGEST = math.ldexp(1 - 2.0**-24, 128)
"""The largest number of single precision: a rate beyond it diverges just as well."""


def betas_at(study: StudyConfig, batch_size: int) -> tuple[float, float]:
    """AdamW's β₁ and β₂ at m.

    With ``beta2_examples`` = H the second is 2^(−m/H): a squared gradient counts half after H
    examples, whatever m is.
    """
    beta1, beta2 = study.betas or (0.0, 0.0)
    if study.beta2_examples is not None:
        beta2 = 2.0 ** (-batch_size / study.beta2_examples)
    return beta1, beta2


def coefficients(study: StudyConfig, batch_size: int, lr: float, update: int) -> tuple[float, ...]:
    """The numbers of one update that change from update to update.

    Args:
        study: The settings.
        batch_size: m.
        lr: η of this update, as `scheduled_lr` gives it.
        update: The number of the update, from 0.

    Returns:
        - ``sgd``: 1 − η·λ and η̃;
        - ``momentum``, ``nesterov``: m·λ and η̃;
        - ``adamw``: 1 − η·λ, η/(1 − β₁ᵗ) and √(1 − β₂ᵗ).
    """
    decay = study.weight_decay
    if study.optimizer == "sgd":
        return 1 - lr * decay, lr / batch_size
    if study.optimizer != "adamw":
        return batch_size * decay, lr / batch_size
    beta1, beta2 = betas_at(study, batch_size)
    step = lr / (1 - beta1 ** (update + 1))
    return 1 - lr * decay, step, math.sqrt(1 - beta2 ** (update + 1))
