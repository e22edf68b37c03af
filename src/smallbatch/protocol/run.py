"""A run: everything that determines its result (sections 2 and 5 of the paper)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smallbatch.protocol.stream import DIGEST, stream_digest

if TYPE_CHECKING:
    from smallbatch.config.params import StudyConfig

# Raised when a change of code changes results, so that old and new runs never share an identity.
PROTOCOL = 1


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
        if stream_digest() != DIGEST:  # a NumPy that makes another stream makes other runs
            identity["stream"] = stream_digest()
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
