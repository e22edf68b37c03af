"""params.yaml as typed, strict, frozen objects; a misspelt key is an error that names it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from smallbatch.config.base_lr import parse_base_lr
from smallbatch.config.messages import allowed, one_line
from smallbatch.config.model_names import validate_model
from smallbatch.errors import UserError

Source = Literal["digits", "cifar10", "cifar100", "parquet", "image_folder"]
Norm = Literal["none", "batch", "batch_conv", "ghost", "group"]
Precision = Literal["float32", "tf32", "bf16"]
EngineSetting = Literal["auto", "loop", "stacked"]

# Names become names of folders and MLflow experiments, and must not lead out of their folder.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

_BEST_OF = re.compile(r"^best of ([a-z0-9][a-z0-9_-]{0,63})$")
_UPDATES_OF = re.compile(r"^updates of ([1-9]\d{0,8})$")


def _best_of(value: object) -> object:
    if isinstance(value, str) and _BEST_OF.match(value):
        return value
    raise ValueError("`best of` and the name of a study that runs before, or base_lrs with a list")


def _budget(value: object) -> object:
    if value == "epochs" or (isinstance(value, str) and _UPDATES_OF.match(value)):
        return value
    raise ValueError("epochs, or `updates of` and a batch size, such as: updates of 64")


MOST = 2**31 - 1  # of any count: more than can be trained, and safe in arithmetic

_Model = TypeVar("_Model", bound=BaseModel)
BaseLr = Annotated[float, BeforeValidator(parse_base_lr)]
# A YAML list reads as a Python list; the items stay strict.
BatchSizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=MOST)], ...], Field(strict=False, min_length=1)
]
BnBatchSizes = Annotated[
    tuple[Annotated[int, Field(ge=2, le=MOST)], ...], Field(strict=False, min_length=1)
]
BaseLrs = Annotated[tuple[BaseLr, ...], Field(strict=False, min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetConfig(_Strict):
    """The source of the images, and which of them are used.

    ``subset`` and ``test_subset`` are numbers of examples, balanced over the classes;
    ``validation_fraction`` is the part of the remaining training examples that becomes the
    validation split; ``image_size`` is in pixels (square), and an image of over ``max_megapixels``
    is refused. ``test_split`` is the source's split to test on. ``scale`` labels a shrunk profile.
    """

    name: Name
    source: Source
    path: str | None = None
    image_column: str = "img"
    label_column: str = "label"
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    max_megapixels: Annotated[int, Field(ge=1, le=10_000)] = 179
    test_split: Name | None = None
    subset: Annotated[int, Field(ge=2, le=MOST)] | None = None
    test_subset: Annotated[int, Field(ge=1, le=MOST)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    scale: Name | None = None


class StudyConfig(_Strict):
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
    budget: Annotated[str, BeforeValidator(_budget)] = "epochs"
    base_lrs: BaseLrs | None = None
    base_lr: Annotated[str, BeforeValidator(_best_of)] | None = None
    figure: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.milestones and self.warmup > min(self.milestones):
            raise ValueError(
                f"warmup: found {self.warmup:g}, allowed: at most the first of milestones, "
                f"{min(self.milestones):g}"
            )
        _refuse_repeats("base_lrs", self.base_lrs or ())
        _refuse_repeats("bn_batch_sizes", self.bn_batch_sizes or ())
        if self.bn_batch_sizes and (self.norm != "ghost" or self.bn_batch_size is not None):
            raise ValueError("bn_batch_sizes: allowed with norm ghost and without bn_batch_size")
        if self.base_lr and self.base_lrs:
            raise ValueError("base_lr: found beside base_lrs, allowed: one of the two")
        return self

    @property
    def best_of(self) -> str | None:
        """The study whose best base learning rates this study uses."""
        match = _BEST_OF.match(self.base_lr or "")
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
        match = _UPDATES_OF.match(self.budget)
        if match is None:
            return self.epochs
        epochs, rest = divmod(self.epochs * batch_size, int(match.group(1)))
        if rest or not epochs:
            found = self.epochs * batch_size / int(match.group(1))
            raise ValueError(
                f"budget: {self.epochs} epochs and {self.budget!r} give {found:g} epochs at batch "
                f"size {batch_size}, allowed: a whole number"
            )
        return epochs


class DependentStudy(_Strict):
    """A study with columns that run after those of another study with the same m."""

    name: str
    after: str


class GridConfig(_Strict):
    """The grid of every study: batch sizes × base learning rates × seeds 0 … seeds − 1.

    ``dependent`` lists the studies that use the best ``base_lr`` of another.
    """

    studies: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    dependent: Annotated[tuple[DependentStudy, ...], Field(strict=False)] = ()
    batch_sizes: BatchSizes
    base_lrs: BaseLrs
    seeds: Annotated[int, Field(ge=1, le=10_000)]

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        for key in ("studies", "batch_sizes", "base_lrs"):
            _refuse_repeats(key, getattr(self, key))
        return self


def _worker_count(value: object) -> object:
    if value == "auto" or (type(value) is int and 1 <= value <= 1024):
        return value
    raise ValueError("a whole number from 1 to 1024, or auto")


def _gibibytes(value: object) -> object:
    if value == "auto" or (type(value) in (int, float) and 0 < float(str(value)) < math.inf):
        return value if value == "auto" else float(str(value))
    raise ValueError("a number of GiB above 0, or auto")


class ComputeConfig(_Strict):
    """How runs are computed; nothing here changes results by more than float rounding.

    ``memory`` is the memory in GiB for the stacked lanes of all workers together; ``auto`` is half
    of the free memory. ``checkpoint_seconds`` is the time between a run's checkpoints, which is the
    most work that a crash can lose.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineSetting = "auto"
    workers: Annotated[int | Literal["auto"], BeforeValidator(_worker_count)] = "auto"
    memory: Annotated[float | Literal["auto"], BeforeValidator(_gibibytes)] = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class Params(_Strict):
    """A whole params.yaml; ``scales`` are a profile's smaller copies, used by `profiles` only."""

    dataset: DatasetConfig
    grid: GridConfig
    studies: dict[Name, StudyConfig]
    compute: ComputeConfig = ComputeConfig()
    scales: dict[Name, dict[str, Any]] = {}

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

    def base_lrs(self, study: str) -> tuple[float, ...]:
        """The base learning rates of an independent study: its own, or else the grid's."""
        return self.studies[study].base_lrs or self.grid.base_lrs


def _refuse_repeats(key: str, values: tuple[object, ...]) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{key} lists {', '.join(twice)} more than once")


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        UserError: Something is wrong: file and key, what was found and what is allowed.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    try:
        raw: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; in the project's folder `smallbatch profile use` makes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())[:300]}") from None
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
