"""params.yaml as typed, strict, frozen objects: a typo is an error that names the key."""

from __future__ import annotations

import difflib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from smallbatch.errors import UserError
from smallbatch.model_names import validate_model

Source = Literal["digits", "cifar10", "cifar100", "parquet", "image_folder"]
Norm = Literal["none", "batch", "batch_conv", "ghost", "group"]
Precision = Literal["float32", "tf32", "bf16"]
EngineSetting = Literal["auto", "loop", "stacked"]

# Names become folder names and MLflow experiment names, so they must stay inside their folder.
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

_POWER = re.compile(r"^\s*2\s*(?:\^|\*\*)\s*([+-]?\d{1,4})\s*$")


def parse_base_lr(value: object) -> float:
    """Read a base learning rate η̃: a number, its text, or a power of two such as ``2^-6``.

    Raises:
        ValueError: not a number, not finite, or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number above 0 or a power of two such as 2^-6")
    try:
        power = _POWER.match(value) if isinstance(value, str) else None
        number = 2.0 ** int(power.group(1)) if power else float(value)
    except (ValueError, OverflowError):
        raise ValueError("expected a number above 0 or a power of two such as 2^-6") from None
    if not math.isfinite(number) or number <= 0:
        raise ValueError("expected a number above 0 or a power of two such as 2^-6")
    return number


def format_base_lr(value: float) -> str:
    """Write a learning rate as the paper does: ``2^-6``, or plain where it is no power of two."""
    mantissa, exponent = math.frexp(value)
    return f"2^{exponent - 1}" if mantissa == 0.5 else f"{value:g}"


_Model = TypeVar("_Model", bound=BaseModel)
BaseLr = Annotated[float, BeforeValidator(parse_base_lr)]
# A YAML list reads as a Python list; the items stay strict.
BatchSizes = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)]
BaseLrs = Annotated[tuple[BaseLr, ...], Field(strict=False, min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetConfig(_Strict):
    """Where the images come from and which of them are used.

    ``subset`` and ``test_subset`` count examples, balanced over the classes;
    ``validation_fraction`` is taken out of the training examples that remain; ``image_size`` is
    in pixels (square).
    """

    name: Name
    source: Source
    path: str | None = None
    image_column: str = "img"
    label_column: str = "label"
    image_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    subset: Annotated[int, Field(ge=2)] | None = None
    test_subset: Annotated[int, Field(ge=1)] | None = None
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class StudyConfig(_Strict):
    """One curve family of the paper: everything but the grid (paper, section 5).

    ``epochs`` counts passes over the training set, ``milestones`` and ``warmup`` are fractions of
    the updates, ``figure`` is the paper's figure that this study reproduces (a label, no setting).
    """

    model: str
    norm: Norm = "none"
    bn_batch_size: Annotated[int, Field(ge=2)] | None = None
    augment: bool = False
    epochs: Annotated[int, Field(ge=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    milestones: Annotated[tuple[Fraction, ...], Field(strict=False)] = (0.5, 0.75)
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Precision = "float32"
    base_lrs: BaseLrs | None = None
    figure: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.milestones and self.warmup > min(self.milestones):
            raise ValueError(
                f"warmup: found {self.warmup:g}, allowed: at most the first of milestones, "
                f"{min(self.milestones):g}"
            )
        _refuse_repeats("base_lrs", self.base_lrs or ())
        return self


class GridConfig(_Strict):
    """What every study is run on: batch sizes × base learning rates × seeds 0 … seeds − 1."""

    studies: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
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
    """How runs are computed; nothing here changes a result beyond float rounding.

    ``memory`` is the GiB that the stacked lanes of all workers may take together; ``auto`` is half
    of what is free. ``checkpoint_seconds`` is the time between a run's checkpoints: the most work
    that a crash costs.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: EngineSetting = "auto"
    workers: Annotated[int | Literal["auto"], BeforeValidator(_worker_count)] = "auto"
    memory: Annotated[float | Literal["auto"], BeforeValidator(_gibibytes)] = "auto"
    checkpoint_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0


class Params(_Strict):
    """A whole params.yaml."""

    dataset: DatasetConfig
    grid: GridConfig
    studies: dict[Name, StudyConfig]
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _grid_fits_studies_and_data(self) -> Self:
        for name in self.grid.studies:
            if name not in self.studies:
                raise ValueError(
                    f"grid.studies: found {name!r}, {_allowed(name, list(self.studies))}"
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

    def base_lrs(self, study: str) -> tuple[float, ...]:
        """Base learning rates of one study: its own, else the grid's."""
        return self.studies[study].base_lrs or self.grid.base_lrs


def _refuse_repeats(key: str, values: tuple[object, ...]) -> None:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{key} lists {', '.join(twice)} more than once")


def load_params(path: Path | str = "params.yaml") -> Params:
    """Read and check a params file.

    Raises:
        UserError: one line naming the file and key, what was found and what is allowed.
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
    """Check plain data (as YAML gives it) and model names; ``origin`` names the data in errors."""
    params = _validate(Params, raw, origin)
    for name, study in params.studies.items():
        sizes = params.grid.batch_sizes if name in params.grid.studies else ()
        for batch_size in (None, *sizes):
            try:
                validate_model(
                    study.model,
                    study.norm,
                    batch_size=batch_size,
                    bn_batch_size=study.bn_batch_size,
                )
            except UserError as error:
                raise UserError(f"{origin}: studies.{name}.{error}") from None
    return params


def parse_study(raw: object, origin: str) -> StudyConfig:
    """Check the settings of one study; ``origin`` names them in errors."""
    return _validate(StudyConfig, raw, origin)


def parse_dataset(raw: object, origin: str) -> DatasetConfig:
    """Check the settings of a data set; ``origin`` names them in errors."""
    return _validate(DatasetConfig, raw, origin)


def parse_compute(raw: object, origin: str) -> ComputeConfig:
    """Check how runs are to be computed; ``origin`` names the settings in errors."""
    return _validate(ComputeConfig, raw, origin)


_PLAIN_WORDS = {
    "string_pattern_mismatch": (
        "lower-case letters, digits, - and _, at most 64, starting with a letter or digit"
    ),
    "too_short": "a list of at least one item",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "string_type": "text",
}


def _validate(model: type[_Model], raw: object, origin: str) -> _Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A misspelt key is also a missing one; the spelling is what helps.
        first = min(errors, key=lambda found: found["type"] != "extra_forbidden")
        raise UserError(f"{origin}: {_one_line(model, first)}") from None


def _one_line(model: type[BaseModel], error: Any) -> str:
    """Turn pydantic's first complaint into: key, what was found, what is allowed."""
    steps = [str(step) for step in error["loc"] if str(step) not in ("int", "tuple[float, ...]")]
    steps = [step for step in steps if not step.startswith(("literal[", "["))]
    key = ".".join(steps)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_allowed(steps[-1], _fields_at(model, steps[:-1]))}"
    if error["type"] == "missing":
        return f"{key}: missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error" and not isinstance(error["input"], str | int | float | bool):
        return f"{key}: {message}" if key else message
    found = repr(error["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
        return f"{key}: found {found}, {_allowed(str(error['input']), choices)}"
    if error["type"] in _PLAIN_WORDS:
        message = _PLAIN_WORDS[error["type"]]
    for prefix in ("Input should be ", "expected "):
        message = message.removeprefix(prefix)
    return f"{key}: found {found}, allowed: {message}"


def _fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    """Field names of the model that the key path ``steps`` leads to."""
    for step in steps:
        field = model.model_fields.get(step)
        if field is None:  # a study's name: the value type of the mapping above
            continue
        inner = [field.annotation, *get_args(field.annotation)]
        found = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        model = found[0] if found else model
    return list(model.model_fields)


def _allowed(found: str, choices: list[str]) -> str:
    close = difflib.get_close_matches(found, choices, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"allowed: {', '.join(choices)}{hint}"
