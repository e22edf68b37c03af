"""params.yaml as typed, strict, frozen objects; a misspelt key is an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError, model_validator

from smallbatch.config import yaml_file
from smallbatch.config.base_lr import refuse_overflow
from smallbatch.config.dataset import DatasetConfig, Strict
from smallbatch.config.messages import allowed, one_line
from smallbatch.config.model_names import validate_model
from smallbatch.config.study import StudyConfig
from smallbatch.config.values import (
    MOST_ITEMS,
    BaseLrs,
    BatchSizes,
    Gibibytes,
    GpuCount,
    HelperCount,
    MicroBatch,
    Name,
    SeedCount,
    WorkerCount,
    refuse_repeats,
)
from smallbatch.errors import Missing, UserError

EngineSetting = Literal["auto", "loop", "stacked"]

_Model = TypeVar("_Model", bound=BaseModel)


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
    seeds: SeedCount

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


class RayConfig(Strict):
    """A Ray cluster, and what a column takes of it.

    ``address`` is ``auto``, for the cluster that runs here or else one of this machine alone, or
    ``HOST:6379``, or ``ray://HOST:10001``. ``cpus`` and ``gpus`` are a column's; ``auto`` is one
    GPU where the cluster has any, else the cores of its smallest node.
    """

    address: Annotated[str, Field(min_length=1, max_length=300)] = "auto"
    cpus: WorkerCount = "auto"
    gpus: GpuCount = "auto"


_OURS = ("--array", "--chdir", "--export", "--export-file", "--open-mode", "--output", "--parsable",
         "--wrap")  # fmt: skip


class SlurmConfig(Strict):
    """Options of `sbatch` for the jobs of columns, such as ``--partition=gpu``."""

    options: Annotated[tuple[str, ...], Field(strict=False, max_length=100)] = ()

    @model_validator(mode="after")
    def _are_options(self) -> Self:
        for option in self.options:
            if not option.startswith("--") or not option.isprintable():
                raise ValueError(f"options: found {option!r}, allowed: such as '--partition=gpu'")
            if (name := option.partition("=")[0]) in _OURS:
                raise ValueError(f"options: found {name}, which smallbatch sets itself")
        return self


class ComputeConfig(Strict):
    """How runs are computed; nothing here changes results by more than float rounding.

    ``memory`` is the memory in GiB for the stacked lanes of all workers together; ``auto`` is half
    of the free memory. ``micro_batch`` is the most examples of a batch that `loop` computes at a
    time; ``auto`` is all, or as many as fit, into ``memory`` where that is set. ``ranks`` is the
    number of GPUs, or of processes on a CPU, by which `loop` trains each run, one run after
    another. ``decoders`` are processes beside each worker that decode images which are kept
    encoded; ``auto`` is none on a CPU, where the workers do that themselves, and on GPUs a share of
    the other cores. ``checkpoint_seconds`` is the time between a run's checkpoints, which is the
    most work that a crash can lose. ``cluster`` is what trains the columns elsewhere.
    ``same_hardware`` forbids columns of which different processors or GPUs trained the runs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineSetting = "auto"
    workers: WorkerCount = "auto"
    memory: Gibibytes = "auto"
    micro_batch: MicroBatch = "auto"
    ranks: Annotated[int, Field(ge=1, le=1024)] = 1
    decoders: HelperCount = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    cluster: Literal["none", "ray", "slurm"] = "none"
    ray: RayConfig = RayConfig()
    slurm: SlurmConfig = SlurmConfig()
    same_hardware: bool = False

    @model_validator(mode="before")
    @classmethod
    def _ranks_are_of_loop(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("ranks", 1) == 1:
            return raw
        engine = cast("dict[str, Any]", raw).get("engine", "auto")
        if engine == "stacked":
            raise ValueError(
                f"ranks: found {raw['ranks']} with engine stacked, which trains many runs on a "
                "device; allowed: 1, or engine loop"
            )
        return {**raw, "engine": "loop"} if engine == "auto" else raw

    @model_validator(mode="after")
    def _lanes_take_whole_batches(self) -> Self:
        if self.micro_batch != "auto" and self.engine == "stacked":
            raise ValueError(
                f"micro_batch: found {self.micro_batch} with engine stacked, which takes batches "
                "as a whole; allowed: auto, or engine loop"
            )
        return self

    def micro_batch_at(self, batch_size: int) -> MicroBatch | None:
        """The most examples of a batch of m at a time; None: all, ``auto``: not said."""
        said = self.micro_batch
        return said if said == "auto" or said < batch_size else None


class AdviseConfig(Strict):
    """Which studies' models `smallbatch advise` is asked about, and what that may cost.

    ``budget`` is a time such as ``20m``, or ``images=2e6``, for each study; ``batch_sizes`` are
    those that are tried; ``target`` is the highest accuracy, or the shortest training that cannot
    be told from it. A training is as long as the study's ``epochs``.
    """

    studies: Annotated[tuple[str, ...], Field(strict=False, max_length=1000)] = ()
    budget: str = "20m"
    batch_sizes: BatchSizes | None = None
    target: Literal["accuracy", "time"] = "accuracy"


class Params(Strict):
    """A whole params.yaml; ``scales`` are a profile's smaller copies, used by `profiles` only."""

    dataset: DatasetConfig
    grid: GridConfig
    studies: dict[Name, StudyConfig]
    compute: ComputeConfig = ComputeConfig()
    advise: AdviseConfig = AdviseConfig()
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
    def _advice_is_on_studies(self) -> Self:
        refuse_repeats("advise.studies", self.advise.studies)
        for name in self.advise.studies:
            if name not in self.studies:
                raise ValueError(
                    f"advise.studies: found {name!r}, {allowed(name, list(self.studies))}"
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

    @model_validator(mode="after")
    def _learning_rates_are_of_one_kind(self) -> Self:
        for name in self.grid.studies:
            study = self.studies[name]
            if study.optimizer == "adamw" and study.lrs is None:
                raise ValueError(
                    f"studies.{name}.lrs: missing, allowed with adamw: a list of learning rates η; "
                    "the grid's base_lrs are η̃, which adamw has not"
                )
        for dependent in self.grid.dependent:
            one, other = self.studies[dependent.name], self.studies[dependent.after]
            if (one.optimizer == "adamw") != (other.optimizer == "adamw"):
                raise ValueError(
                    f"studies.{dependent.name}.base_lr: found 'best of {dependent.after}' with the "
                    f"optimisers {one.optimizer} and {other.optimizer}, allowed: both adamw, or "
                    "neither, as AdamW's learning rate is η and that of the others η/m"
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
        """The learning rates of an independent study: its own, or else the grid's.

        They are base learning rates η̃, under AdamW learning rates η.
        """
        return self.studies[study].rates or self.grid.base_lrs

    def seeds(self, study: str) -> range:
        """The seeds of a study's runs: as many as it says itself, or else the grid."""
        return range(self.studies[study].seeds or self.grid.seeds)


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
                    refuse_overflow(max(params.base_lrs(name)), study.examples_per_rate(batch_size))
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
