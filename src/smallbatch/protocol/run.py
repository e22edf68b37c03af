"""A run: its settings and its identity (sections 2 and 5 of the paper)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from smallbatch.protocol.stream import DIGEST, stream_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from smallbatch.config.study import StudyConfig

# To be increased when changed code changes results, so that old and new runs have other hashes.
# What each version changed, and which results are of which: docs/decisions.md.
PROTOCOL = 2


# Settings that only choose or label runs; what they choose is in the run itself.
# Of pretrained weights the content counts, which is in the run's ``model_digest``.
_NOT_IDENTITY = {"figure", "base_lrs", "base_lr", "lrs", "budget", "bn_batch_sizes", "pretrained"}
# Settings that came later, with what they were before. That value is left out of a run's hash, so
# that runs trained before keep theirs.
_WAS_ALWAYS = {
    "optimizer": "sgd",
    "momentum": None,
    "betas": None,
    "beta2_examples": None,
    "eps": None,
    "schedule": "step",
    "freeze": None,
    "input": None,
}
_LATER = {**_WAS_ALWAYS, "pretrained": None}


@dataclass(frozen=True)
class Run:
    """One training; under the `stacked` engine a lane.

    Attributes:
        settings: The study's settings at this batch size, with at most one BN batch size.
        fingerprint: The hash of the prepared data set's content.
        batch_size: m, examples per update.
        base_lr: η̃ = η / m; under AdamW η.
        seed: The seed of weights, order, crops and flips.
        model_digest: The digests of an own model's source and of pretrained weights; else empty.
    """

    settings: StudyConfig
    fingerprint: str
    batch_size: int
    base_lr: float
    seed: int
    model_digest: str = ""

    @property
    def lr(self) -> float:
        """Learning rate of the mean gradient before any schedule, η = m·η̃ (eq. 5)."""
        return self.settings.examples_per_rate(self.batch_size) * self.base_lr

    @property
    def hash(self) -> str:
        """16 hex digits that depend on everything that determines the result."""
        return run_hash(
            self.settings.model_dump(mode="json"),
            protocol=PROTOCOL,
            fingerprint=self.fingerprint,
            batch_size=self.batch_size,
            base_lr=self.base_lr,
            seed=self.seed,
            model_digest=self.model_digest,
        )


def run_hash(
    settings: Mapping[str, Any],
    *,
    protocol: int,
    fingerprint: str,
    batch_size: int,
    base_lr: float,
    seed: int,
    model_digest: str = "",
) -> str:
    """A run's hash, of a run or of what a file says of one; ``settings`` as JSON holds them."""
    identity: dict[str, Any] = {
        "protocol": protocol,
        "fingerprint": fingerprint,
        "settings": {key: value for key, value in settings.items() if _decides(key, value)},
        "batch_size": batch_size,
        "base_lr": base_lr.hex(),
        "seed": seed,
    }
    if model_digest:
        identity["model"] = model_digest
    if stream_digest() != DIGEST:  # a NumPy that makes another stream makes other runs
        identity["stream"] = stream_digest()
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file tells them: those that came later only where they say something new.

    So a column of plain SGD has the same files as before there were others.
    """
    return {
        key: value for key, value in settings.items() if key not in _LATER or value != _LATER[key]
    }


def is_as_ever(settings: Mapping[str, Any]) -> bool:
    """Whether settings have nothing that came later than a run's first settings."""
    return all(settings.get(key, value) == value for key, value in _LATER.items())


def _decides(key: str, value: object) -> bool:
    return key not in _NOT_IDENTITY and (key not in _WAS_ALWAYS or value != _WAS_ALWAYS[key])
