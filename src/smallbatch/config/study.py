"""The settings of a study: everything about its runs except the grid."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from smallbatch.config.dataset import Strict
from smallbatch.config.optimiser_keys import OPTIMISER_DEFAULTS, refuse_foreign_keys
from smallbatch.config.values import (
    BEST_OF,
    MOST,
    UPDATES_OF,
    BaseLrs,
    BestOf,
    BnBatchSize,
    BnBatchSizes,
    Budget,
    Fraction,
    SeedCount,
    UpTo,
    refuse_repeats,
)

Norm = Literal["none", "batch", "batch_conv", "ghost", "group"]
Precision = Literal["float32", "tf32", "bf16"]
Optimizer = Literal["sgd", "momentum", "nesterov", "adamw"]
Schedule = Literal["step", "cosine", "constant"]

_NORM = ("norm", "bn_batch_size")
_Beta = Annotated[float, Field(ge=0, lt=1)]


class StudyConfig(Strict):
    """A family of curves of the paper: all settings except the grid (paper, section 5).

    ``epochs`` counts passes over the training set; ``milestones`` and ``warmup`` are fractions of
    the updates; ``figure`` is the paper's figure that the study reproduces, which is only a label.

    With ``bn_batch_size: up to N`` a batch of at most N is normalised as one, which is the norm
    batch and the same runs as under it, and a larger one in sub-batches of N.

    ``bn_batch_sizes`` makes the sub-batch of ghost batch norm an axis of the grid (Figs. 13, 14);
    at SGD batch size m, those that are at most m are run. With ``base_lr: best of STUDY`` each m
    is run at the best base learning rate of that study's column with the same m. With ``budget:
    updates of B`` a run at m has epochs·m/B epochs, so that all make as many updates as one at B.

    ``momentum`` (μ) belongs to the optimisers momentum and nesterov; ``betas``, ``eps`` and
    ``beta2_examples`` to adamw, where the latter stands for β₂: the number of examples after which
    a squared gradient counts half, the same at every m. Weight decay is coupled (added to the
    gradient), with adamw decoupled. AdamW's learning rates are η, under ``lrs``; the others' are η̃,
    under ``base_lrs``. ``milestones`` and ``lr_decay`` belong to the schedule step.

    ``seeds`` is the study's own number of seeds, in place of the grid's. It says how many runs
    there are, and nothing of any of them: the settings of a run, as `at` gives them, have none.

    ``pretrained`` is a file of weights, relative to the project's folder, or ``timm`` for those
    that timm has; the head is initialised anew. With ``freeze: head only`` only the head is
    trained. With ``input: timm`` images that are kept encoded have the size, the normalisation, the
    crop and the filter that timm states for the model, instead of the data set's own.
    """

    model: str
    norm: Norm = "none"
    bn_batch_size: BnBatchSize | None = None
    bn_batch_sizes: BnBatchSizes | None = None
    augment: bool = False
    epochs: Annotated[int, Field(ge=1, le=MOST)]
    weight_decay: Annotated[float, Field(ge=0)]
    milestones: Annotated[tuple[Fraction, ...], Field(strict=False)] = (0.5, 0.75)
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Precision = "float32"
    budget: Budget = "epochs"
    base_lrs: BaseLrs | None = None
    base_lr: BestOf | None = None
    figure: str | None = None
    optimizer: Optimizer = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    betas: Annotated[tuple[_Beta, _Beta], Field(strict=False)] | None = None
    beta2_examples: Annotated[float, Field(gt=0, le=MOST)] | None = None
    eps: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: Schedule = "step"
    lrs: BaseLrs | None = None
    pretrained: Annotated[str, Field(min_length=1)] | None = None
    freeze: Literal["head only"] | None = None
    input: Literal["timm"] | None = None
    seeds: SeedCount | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_the_optimisers_defaults(cls, raw: Any) -> Any:
        """Fill in what the optimiser needs, so that a run's settings name all its numbers."""
        name = raw.get("optimizer", "sgd") if isinstance(raw, dict) else None
        defaults = OPTIMISER_DEFAULTS.get(name, {}) if isinstance(name, str) else {}
        given = {key for key in defaults if raw.get(key) is not None}
        return {**raw, **{k: v for k, v in defaults.items() if k not in given}} if defaults else raw

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_foreign_keys(self)
        if self.schedule == "step" and self.milestones and self.warmup > min(self.milestones):
            raise ValueError(
                f"warmup: found {self.warmup:g}, allowed: at most the first of milestones, "
                f"{min(self.milestones):g}"
            )
        refuse_repeats("base_lrs", self.base_lrs or ())
        refuse_repeats("bn_batch_sizes", self.bn_batch_sizes or ())
        if self.bn_batch_sizes and (self.norm != "ghost" or self.bn_batch_size is not None):
            raise ValueError("bn_batch_sizes: allowed with norm ghost and without bn_batch_size")
        if self.freeze and not self.pretrained:
            raise ValueError("freeze: allowed with pretrained only, whose weights it keeps")
        if self.base_lr and self.rates:
            raise ValueError(f"base_lr: found beside {self.rates_key}, allowed: one of the two")
        return self

    @model_serializer(mode="wrap")
    def _without_seeds_if_none(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `seeds` where there are none, so that runs from before have the same hash."""
        return {k: v for k, v in write(self).items() if k != "seeds" or v is not None}

    @property
    def rates_key(self) -> str:
        """The key of the study's own learning rates: `lrs`, those of η, under AdamW."""
        return "lrs" if self.optimizer == "adamw" else "base_lrs"

    @property
    def rates(self) -> tuple[float, ...] | None:
        """The study's own learning rates: η̃, or under AdamW η."""
        return self.lrs if self.optimizer == "adamw" else self.base_lrs

    def examples_per_rate(self, batch_size: int) -> int:
        """How many times its learning rate on the grid a run's η is: m, under AdamW 1."""
        return 1 if self.optimizer == "adamw" else batch_size

    @property
    def best_of(self) -> str | None:
        """The study whose best base learning rates this study uses."""
        match = BEST_OF.match(self.base_lr or "")
        return match.group(1) if match else None

    def at(self, batch_size: int) -> tuple[StudyConfig, ...]:
        """The settings of the runs at m: epochs by the budget, and at most one BN batch size each.

        How many seeds there are is none of them.

        Raises:
            ValueError: The budget gives no whole number of epochs, or no BN batch size fits.
        """
        settings = self.model_copy(update={"epochs": self._epochs_at(batch_size), "seeds": None})
        if isinstance(most := self.bn_batch_size, UpTo):
            here = ("batch", None) if batch_size <= most else (self.norm, int(most))
            settings = settings.model_copy(update=dict(zip(_NORM, here, strict=True)))
        if self.bn_batch_sizes is None:
            return (settings,)
        fitting = [size for size in self.bn_batch_sizes if size <= batch_size]
        if not fitting:
            raise ValueError(
                f"bn_batch_sizes: found none up to batch size {batch_size}, allowed: at least one"
            )
        return tuple(settings.model_copy(update={"bn_batch_size": size}) for size in fitting)

    def _epochs_at(self, batch_size: int) -> int:
        match = UPDATES_OF.match(self.budget)
        if match is None:
            return self.epochs
        epochs, rest = divmod(self.epochs * batch_size, int(match.group(1)))
        if rest or not 1 <= epochs <= MOST:
            found = self.epochs * batch_size / int(match.group(1))
            raise ValueError(
                f"budget: epochs {self.epochs} and {self.budget!r} give {found:g} epochs at batch "
                f"size {batch_size}, allowed: a whole number up to {MOST}"
            )
        return epochs
