"""The number of updates and the learning rates of a training (paper, sections 2 and 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig


WARMUP_START = 1 / 32  # warm-up begins at η/32


def updates_after(epochs: int, n: int, batch_size: int) -> int:
    """The number of whole updates in ``epochs`` epochs of ``n`` examples: floor(E·N/m)."""
    return epochs * n // batch_size


def scheduled_lr(update: int, updates: int, lr: float, study: StudyConfig) -> float:
    """η of one update: warm-up, then the schedule.

    Args:
        update: The number of the update, from 0.
        updates: The number of updates of the whole training.
        lr: η = m·η̃.
        study: The settings; ``warmup`` and ``milestones`` are fractions of the updates.

    Returns:
        With warm-up over W = warmup·updates, η·(1/32 + 31/32·update/W) while update < W. After that

        - ``step``: η·lr_decay^k, where k is the number of milestones f with update ≥ f·updates;
        - ``cosine``: η·(1 + cos(π·(update − W)/(updates − W)))/2, which would reach 0 at an update
          after the last (Loshchilov & Hutter 2017, eq. 5);
        - ``constant``: η.
    """
    ramp = study.warmup * updates
    if update < ramp:
        return lr * (WARMUP_START + (1 - WARMUP_START) * update / ramp)
    if study.schedule == "constant":
        return lr
    if study.schedule == "cosine":
        return lr * (1 + math.cos(math.pi * (update - ramp) / (updates - ramp))) / 2
    passed = sum(update >= fraction * updates for fraction in study.milestones)
    return lr * study.lr_decay**passed
