"""Which keys of a study belong to which optimiser and schedule, and what they are by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig

OPTIMISER_DEFAULTS: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "adamw": {"betas": (0.9, 0.999), "eps": 1e-8},
}
"""As in torch.optim, and the momentum that is usual."""

_OPTIMISERS_OF = {
    "momentum": ("momentum", "nesterov"),
    "betas": ("adamw",),
    "beta2_examples": ("adamw",),
    "eps": ("adamw",),
    "lrs": ("adamw",),
    "base_lrs": ("sgd", "momentum", "nesterov"),
}
_OF_STEP = ("milestones", "lr_decay")


def _instead(key: str, study: StudyConfig) -> str:
    rates = key in ("lrs", "base_lrs")
    return f"; {study.optimizer}'s learning rates are {study.rates_key}" if rates else ""


def refuse_foreign_keys(study: StudyConfig) -> None:
    """Check that a study has no key of another optimiser or schedule.

    Raises:
        ValueError: It has one, or `beta2_examples` and a β₂ of its own, or nesterov without
            momentum; the message names the key.
    """
    for key, optimisers in _OPTIMISERS_OF.items():
        if getattr(study, key) is not None and study.optimizer not in optimisers:
            raise ValueError(
                f"{key}: found with optimizer {study.optimizer}, allowed with "
                f"{' or '.join(optimisers)}{_instead(key, study)}"
            )
    if study.optimizer == "nesterov" and study.momentum == 0:
        raise ValueError("momentum: found 0 with optimizer nesterov, allowed: above 0; or sgd")
    if study.beta2_examples is not None and study.betas is not None:
        default = OPTIMISER_DEFAULTS["adamw"]["betas"][1]
        if study.betas[1] != default:
            raise ValueError(
                f"beta2_examples: found beside betas with β₂ = {study.betas[1]:g}, which it "
                f"replaces, allowed: betas with {default:g}, or without betas"
            )
    fields = type(study).model_fields
    for key in _OF_STEP:
        if study.schedule != "step" and getattr(study, key) != fields[key].default:
            raise ValueError(f"{key}: found with schedule {study.schedule}, allowed with step")
