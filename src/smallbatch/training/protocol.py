"""The paper's training protocol as arithmetic: runs, updates, learning rates (sections 2, 5)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallbatch.config import StudyConfig

# Raised when a change of code changes results, so that old and new runs never share an identity.
PROTOCOL = 1

WARMUP_START = 1 / 32  # warm-up begins at η/32

# Settings that choose or label runs without changing any of them; what they chose is in the run.
_NOT_IDENTITY = {"figure", "base_lrs", "base_lr", "budget", "bn_batch_sizes"}


@dataclass(frozen=True)
class Run:
    """One training: a lane of a column.

    Attributes:
        settings: the study's settings at this batch size, with one BN batch size at most.
        fingerprint: content hash of the prepared data set.
        batch_size: m, examples per update.
        base_lr: η̃ = η / m.
        seed: of weights, order, crops and flips.
    """

    settings: StudyConfig
    fingerprint: str
    batch_size: int
    base_lr: float
    seed: int

    @property
    def lr(self) -> float:
        """Learning rate of the mean gradient before any schedule, η = m·η̃ (eq. 5)."""
        return self.batch_size * self.base_lr

    @property
    def hash(self) -> str:
        """Identity: 16 hex digits over everything that determines the result."""
        identity: dict[str, Any] = {
            "protocol": PROTOCOL,
            "fingerprint": self.fingerprint,
            "settings": self.settings.model_dump(mode="json", exclude=_NOT_IDENTITY),
            "batch_size": self.batch_size,
            "base_lr": self.base_lr.hex(),
            "seed": self.seed,
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def updates_after(epochs: int, n: int, batch_size: int) -> int:
    """Whole updates done once ``epochs`` epochs of ``n`` examples have gone by: floor(E·N/m)."""
    return epochs * n // batch_size


def scheduled_lr(update: int, updates: int, lr: float, study: StudyConfig) -> float:
    """η of one update: warm-up, then a division at each milestone.

    Args:
        update: from 0.
        updates: of the whole training.
        lr: η = m·η̃.
        study: its ``warmup`` and ``milestones`` are fractions of the updates.

    Returns:
        With warm-up over W = warmup·updates, η·(1/32 + 31/32·update/W) while update < W; otherwise
        η·lr_decay^k, k being the number of milestones f with update ≥ f·updates.
    """
    ramp = study.warmup * updates
    if update < ramp:
        return lr * (WARMUP_START + (1 - WARMUP_START) * update / ramp)
    passed = sum(update >= fraction * updates for fraction in study.milestones)
    return lr * study.lr_decay**passed
