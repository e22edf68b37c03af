"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from smallbatch.config.params import Params

if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
    _Sizes = click.ParamType[tuple[int, ...]]
    _Count = click.ParamType[int | str]
else:  # not generic before click 8.4
    _FloatType = _Sizes = _Count = click.ParamType


MOST = 2**31 - 1  # of any count, as in params.yaml
MOST_SECONDS = 10_000 * 3600  # more than a system's clocks wait for is an error


class Seconds(_FloatType):
    """A duration such as 90, 45m or 3h30m, in seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The value that was typed."""
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", str(value).strip())
        hours, minutes, seconds = (
            (float(part or 0) for part in found.groups()) if found else (0,) * 3
        )
        total = 3600 * hours + 60 * minutes + seconds
        if not 0 < total <= MOST_SECONDS:
            self.fail(
                f"found {str(value)[:80]!r}, allowed: such as 90, 45m or 3h30m, at most 10000h",
                param,
                ctx,
            )
        return total


class FloatRange(click.FloatRange):
    """Numbers of a range, of which NaN is none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The value that was typed."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class BaseLr(_FloatType):
    """A number, or a power of two such as 2^-8."""

    name = "number or 2^k"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The value that was typed."""
        from smallbatch.config.base_lr import parse_base_lr

        try:
            return parse_base_lr(value)
        except ValueError as error:
            self.fail(f"found {str(value)[:80]!r}, {error}", param, ctx)


class BatchSizes(_Sizes):
    """Batch sizes with commas between them."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The value that was typed."""
        words = [word.strip() for word in str(value).split(",")]
        if not all(
            word.isascii() and word.isdecimal() and 1 <= int(word) <= MOST for word in words
        ):
            self.fail(f"found {str(value)[:80]!r}, allowed: such as 4,16,64", param, ctx)
        return tuple(map(int, words))


class MicroBatch(_Count):
    """A number of examples, or auto."""

    name = "number or auto"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """The value that was typed."""
        word = str(value).strip()
        if word == "auto":
            return word
        if not (word.isascii() and word.isdecimal() and 1 <= int(word[:20]) <= MOST):
            self.fail(f"found {word[:80]!r}, allowed: auto, or a number from 1", param, ctx)
        return int(word)


PARAMS = click.option(
    "--params",
    "params_file",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    show_default=True,
    help="The params file.",
)
MODELS = click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=Path("models"),
    show_default=True,
    help="Folder of the result files.",
)
SCALE = click.option("--scale", help="A smaller copy of the profile, such as small or smoke.")
TIME_LIMIT = click.option(
    "--time-limit",
    type=Seconds(),
    envvar="SMALLBATCH_TIME_LIMIT",
    show_envvar=True,
    help="Stop before this much time has passed, such as 45m or 3h30m, with all progress kept and "
    "exit status 76. Counts from the start of the command, under dvc from that of dvc.",
)

# How a model is trained.
MODEL = click.option(
    "--model",
    default="resnet8",
    show_default=True,
    help="resnet8, resnet20, resnet32, alexnet, any timm model, or module:factory of your own.",
)
PRETRAINED = click.option(
    "--pretrained",
    help="File of weights to start from, all but the head; or timm, for those that it has.",
)
FREEZE = click.option(
    "--freeze", type=click.Choice(["head only"]), help="Train the head alone, with --pretrained."
)
BN_BATCH_SIZE = click.option("--bn-batch-size", type=int, help="Sub-batch of ghost batch norm.")
OPTIMIZER = click.option(
    "--optimizer",
    default="sgd",
    show_default=True,
    type=click.Choice(["sgd", "momentum", "nesterov", "adamw"]),
)
MOMENTUM = click.option(
    "--momentum", type=float, help="μ of momentum and nesterov; 0.9 by default."
)
SCHEDULE = click.option(
    "--schedule",
    default="step",
    show_default=True,
    type=click.Choice(["step", "cosine", "constant"]),
)
WEIGHT_DECAY = click.option("--weight-decay", default=1e-4, show_default=True, type=float)
WARMUP = click.option(
    "--warmup",
    default=0.0,
    show_default=True,
    type=float,
    help="Fraction of training, from η/32 up to η.",
)
AUGMENT = click.option(
    "--augment/--no-augment",
    default=False,
    show_default=True,
    help="Random crops and flips.",
)
DEVICE = click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)

MICRO_BATCH = click.option(
    "--micro-batch",
    type=MicroBatch(),
    help="Examples of a batch that are computed at a time, where all of them do not fit into "
    "memory; auto: as many as fit.",
)
CLUSTER = click.option(
    "--cluster",
    type=click.Choice(["none", "ray", "slurm"]),
    help="Who trains, instead of what compute.cluster says.",
)


def on_cluster(params: Params, cluster: str | None) -> Params:
    """The params with another `compute.cluster`; None: as they are."""
    if cluster is None:
        return params
    compute = params.compute.model_copy(update={"cluster": cluster})
    return params.model_copy(update={"compute": compute})


def in_parts(params: Params, micro_batch: int | str | None) -> Params:
    """The params with another `compute.micro_batch`; None: as they are.

    Raises:
        UserError: It does not go with the engine.
    """
    if micro_batch is None:
        return params
    from smallbatch.config.params import parse_compute

    said = {**params.compute.model_dump(exclude_unset=True), "micro_batch": micro_batch}
    return params.model_copy(update={"compute": parse_compute(said, "compute")})


def load(path: Path) -> Params:
    """Read and check the params file.

    Raises:
        UserError: It is missing, or something in it is not allowed.
    """
    from smallbatch.config.params import load_params

    return load_params(path)
