"""params.yaml as typed, strict, frozen objects; a misspelt key is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from smallbatch.config import yaml_file
from smallbatch.config.base_lr import refuse_overflow
from smallbatch.config.dataset import DatasetConfig, Strict
from smallbatch.config.messages import allowed, one_line
from smallbatch.config.model_names import validate_model
from smallbatch.config.values import (
    BEST_OF,
    MOST,
    MOST_ITEMS,
    UPDATES_OF,
    BaseLrs,
    BatchSizes,
    BestOf,
    BnBatchSizes,
    Budget,
    Fraction,
    Gibibytes,
    Name,
    WorkerCount,
    refuse_repeats,
)
from smallbatch.errors import Missing, UserError

Norm = Literal["none", "batch", "batch_conv", "ghost", "group"]
Precision = Literal["float32", "tf32", "bf16"]
EngineSetting = Literal["auto", "loop", "stacked"]

_Model = TypeVar("_Model", bound=BaseModel)


class StudyConfig(Strict):
    """A family of curves of the paper: all settings except the grid (paper, section 5).

    ``epochs`` counts passes over the training set; ``milestones`` and ``warmup`` are fractions of
    the updates; ``figure`` is the paper's figure that the study reproduces, which is only a label.

    ``bn_batch_sizes`` makes the sub-batch of ghost batch norm an axis of the grid (Figs. 13, 14);
    at SGD batch size m, those that are at most m are run. With ``base_lr: best of STUDY`` each m
    is run at the best base learning rate of that study's column with the same m. With ``budget:
    updates of B`` a run at m has epochs·m/B epochs, so that all make as many updates as one at B.
    """

    model: str
    norm: Norm = "none"
    bn_batch_size: Annotated[int, Field(ge=2, le=MOST)] | None = None
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.milestones and self.warmup > min(self.milestones):
            raise ValueError(
                f"warmup: found {self.warmup:g}, allowed: at most the first of milestones, "
                f"{min(self.milestones):g}"
            )
        refuse_repeats("base_lrs", self.base_lrs or ())
        refuse_repeats("bn_batch_sizes", self.bn_batch_sizes or ())
        if self.bn_batch_sizes and (self.norm != "ghost" or self.bn_batch_size is not None):
            raise ValueError("bn_batch_sizes: allowed with norm ghost and without bn_batch_size")
        if self.base_lr and self.base_lrs:
            raise ValueError("base_lr: found beside base_lrs, allowed: one of the two")
        return self

    @property
    def best_of(self) -> str | None:
        """The study whose best base learning rates this study uses."""
        match = BEST_OF.match(self.base_lr or "")
        return match.group(1) if match else None

    def at(self, batch_size: int) -> tuple[StudyConfig, ...]:
        """The settings of the runs at m: epochs by the budget, and one BN batch size each.

        Raises:
            ValueError: The budget gives no whole number of epochs, or no BN batch size fits.
        """
        settings = self.model_copy(update={"epochs": self._epochs_at(batch_size)})
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


class DependentStudy(Strict):
    """A study with columns that run after those of another study with the same m."""

    name: str
    after: str


class GridConfig(Strict):
    """The grid of every study: batch sizes × base learning rates × seeds 0 … seeds − 1.

    ``dependent`` lists the studies that use the best ``base_lr`` of another.
    """

    studies: Annotated[tuple[str, ...], Field(strict=False, min_length=1, max_length=1000)]
    dependent: Annotated[tuple[DependentStudy, ...], Field(strict=False, max_length=1000)] = ()
    batch_sizes: BatchSizes
    base_lrs: BaseLrs
    seeds: Annotated[int, Field(ge=1, le=10_000)]

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        for key in ("studies", "batch_sizes", "base_lrs"):
            refuse_repeats(key, getattr(self, key))
        columns = (len(self.studies) + len(self.dependent)) * len(self.batch_sizes)
        if columns > MOST_ITEMS:
            raise ValueError(
                f"studies and batch_sizes: found {columns} columns, allowed: at most {MOST_ITEMS}"
            )
        return self


class ComputeConfig(Strict):
    """How runs are computed; nothing here changes results by more than float rounding.

    ``memory`` is the memory in GiB for the stacked lanes of all workers together; ``auto`` is half
    of the free memory. ``checkpoint_seconds`` is the time between a run's checkpoints, which is the
    most work that a crash can lose.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineSetting = "auto"
    workers: WorkerCount = "auto"
    memory: Gibibytes = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class Params(Strict):
    """A whole params.yaml; ``scales`` are a profile's smaller copies, used by `profiles` only."""

    dataset: DatasetConfig
    grid: GridConfig
    studies: dict[Name, StudyConfig]
    compute: ComputeConfig = ComputeConfig()
    scales: dict[Name, dict[str, Any]] = Field(default={})

    @model_validator(mode="after")
    def _grid_fits_studies_and_data(self) -> Self:
        for name in self.grid.studies:
            if name not in self.studies:
                raise ValueError(
                    f"grid.studies: found {name!r}, {allowed(name, list(self.studies))}"
                )
        if self.dataset.subset is not None:
            subset = self.dataset.subset
            kept = subset - round(self.dataset.validation_fraction * subset)
            if max(self.grid.batch_sizes) > kept:
                raise ValueError(
                    f"grid.batch_sizes: found {max(self.grid.batch_sizes)}, allowed: at most the "
                    f"{kept} training examples of dataset.subset"
                )
        return self

    @model_validator(mode="after")
    def _dependent_studies_come_after_another(self) -> Self:
        for study in self.grid.dependent:
            for name, known in ((study.name, self.studies), (study.after, self.grid.studies)):
                if name not in known:
                    raise ValueError(f"grid.dependent: found {name!r}, {allowed(name, [*known])}")
        after = {study.name: study.after for study in self.grid.dependent}
        for name in (*self.grid.studies, *after):
            asked = self.studies[name].best_of
            if asked != after.get(name) or (name in after and name in self.grid.studies):
                if asked is None:
                    raise ValueError(
                        f"studies.{name}.base_lr: missing, allowed with a study of grid.dependent: "
                        f"best of {after[name]}"
                    )
                raise ValueError(
                    f"studies.{name}.base_lr: found 'best of {asked}', which needs the study under "
                    f"grid.dependent, not grid.studies: {{name: {name}, after: {asked}}}"
                )
        return self

    @property
    def running(self) -> tuple[str, ...]:
        """The names of all studies that are run."""
        return (*self.grid.studies, *(study.name for study in self.grid.dependent))

    @property
    def columns(self) -> tuple[tuple[str, int], ...]:
        """The study and batch size of every column that is trained."""
        return tuple((study, m) for study in self.running for m in self.grid.batch_sizes)

    def base_lrs(self, study: str) -> tuple[float, ...]:
        """The base learning rates of an independent study: its own, or else the grid's."""
        return self.studies[study].base_lrs or self.grid.base_lrs


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        UserError: Something is wrong: file and key, what was found and what is allowed.
    """
    path = Path(path)
    try:
        raw = yaml_file.read(path)
    except FileNotFoundError:
        raise Missing(f"{path}: no such file; `smallbatch profile use` makes one") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected the keys {', '.join(Params.model_fields)}")
    return parse_params(raw, str(path))


def parse_params(raw: object, origin: str) -> Params:
    """Check plain data, as read from YAML; ``origin`` names the data in errors."""
    params = _validate(Params, raw, origin)
    for name, study in params.studies.items():
        sizes = params.grid.batch_sizes if name in params.running else ()
        try:
            # If the study has several BN batch sizes, any is right here, without a batch size.
            bn_batch_size = study.bn_batch_size or (study.bn_batch_sizes or (None,))[0]
            validate_model(study.model, study.norm, bn_batch_size=bn_batch_size)
            for batch_size in sizes:
                if study.best_of is None:
                    _refuse_two_axes(study, params.base_lrs(name))
                    refuse_overflow(max(params.base_lrs(name)), batch_size)
                for settings in study.at(batch_size):
                    validate_model(
                        settings.model,
                        settings.norm,
                        batch_size=batch_size,
                        bn_batch_size=settings.bn_batch_size,
                    )
        except (UserError, ValueError) as error:
            raise UserError(f"{origin}: studies.{name}.{error}") from None
    return params


def _refuse_two_axes(study: StudyConfig, base_lrs: tuple[float, ...]) -> None:
    """The second axis of a study's cells is either η̃ or the BN batch size, never both."""
    if study.bn_batch_sizes is not None and len(base_lrs) > 1:
        raise ValueError(
            f"bn_batch_sizes: found with {len(base_lrs)} base learning rates, allowed: with one, "
            "by `base_lr: best of STUDY` or a list base_lrs of one"
        )


def parse_study(raw: object, origin: str) -> StudyConfig:
    """Check the settings of one study; ``origin`` names them in errors."""
    return _validate(StudyConfig, raw, origin)


def parse_dataset(raw: object, origin: str) -> DatasetConfig:
    """Check the settings of a data set; ``origin`` names them in errors."""
    return _validate(DatasetConfig, raw, origin)


def parse_compute(raw: object, origin: str) -> ComputeConfig:
    """Check the settings for computing runs; ``origin`` names them in errors."""
    return _validate(ComputeConfig, raw, origin)


def _validate(model: type[_Model], raw: object, origin: str) -> _Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A misspelt key is also a missing one, but the spelling is what the user must correct.
        first = min(errors, key=lambda found: found["type"] != "extra_forbidden")
        raise UserError(f"{origin}: {one_line(model, first)}") from None
