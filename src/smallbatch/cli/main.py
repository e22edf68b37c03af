"""The `smallbatch` command: parses, calls, prints; the work is in the modules it calls."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallbatch.cli.bench import bench
from smallbatch.errors import Stopped, UserError

if TYPE_CHECKING:
    from smallbatch.config.params import Params

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


class _Group(click.Group):
    """Shows what a user can repair as one line with exit status 2, and what stopped a training."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _BadInput(" ".join(str(error).split())) from None
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk, a read-only folder
            where = f"{error.filename}: " if error.filename else ""
            raise _BadInput(f"{where}{error.strerror or error}") from None
        except Stopped as stopped:
            click.echo(str(stopped), err=True)
            # Whoever asked for the end waits for it, and torch takes seconds to be torn down.
            os._exit(stopped.exit_code)


if TYPE_CHECKING:
    _FloatType = click.ParamType[float]
else:  # not generic before click 8.4
    _FloatType = click.ParamType


class _BadInput(click.ClickException):
    exit_code = 2


class _Seconds(_FloatType):
    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", str(value).strip())
        hours, minutes, seconds = (
            (float(part or 0) for part in found.groups()) if found else (0,) * 3
        )
        total = 3600 * hours + 60 * minutes + seconds
        if total <= 0:
            self.fail(f"found {value!r}, allowed: such as 90, 45m or 3h30m", param, ctx)
        return total


TIME_LIMIT = click.option(
    "--time-limit",
    type=_Seconds(),
    envvar="SMALLBATCH_TIME_LIMIT",
    show_envvar=True,
    help="Stop before this much time has passed, such as 45m or 3h30m, with all progress kept and "
    "exit status 76. Counts from the start of the command, under dvc from that of dvc.",
)


class _BaseLr(_FloatType):
    name = "number or 2^k"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        from smallbatch.config.params import parse_base_lr

        try:
            return parse_base_lr(value)
        except ValueError as error:
            self.fail(f"found {value!r}, {error}", param, ctx)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="smallbatch")
def main() -> None:
    """Which batch sizes train stably, and which generalise?

    A pipeline after Masters & Luschi 2018, "Revisiting Small Batch Training for Deep Neural
    Networks". `dvc repro` runs it whole; these commands are its stages and its tools.

    \b
    Examples:
      dvc repro                                        # data → runs → report
      smallbatch run --model resnet8 --batch-size 4 --base-lr 2^-6 --epochs 20
      smallbatch ui                                    # browse the runs in MLflow
    """


@main.command()
@PARAMS
def prepare(params_file: Path) -> None:
    """Make the data set's arrays under data/prepared/.

    \b
    Examples:
      smallbatch prepare
      smallbatch prepare --params profiles/cifar10-cpu.yaml
    """
    from smallbatch.data.prepare import prepare as prepare_data

    params = _load(params_file)
    meta = prepare_data(params.dataset)
    largest, train = max(params.grid.batch_sizes), meta.counts["train"]
    if largest > train:
        raise UserError(
            f"{params_file}: grid.batch_sizes: found {largest}, allowed: at most the {train} "
            f"training examples of {meta.name}"
        )
    counts = ", ".join(f"{n} {split}" for split, n in meta.counts.items() if n)
    shape = f"{meta.channels}×{meta.height}×{meta.width}"
    click.echo(f"data/prepared/{meta.name}: {counts} images {shape}, {len(meta.classes)} classes")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@PARAMS
def plan(as_json: bool, params_file: Path) -> None:
    """Show what the params file will cost, column by column, before any training.

    The time is this machine's, from a calibration of seconds that is kept for the next time.

    \b
    Examples:
      smallbatch plan
      smallbatch plan --params profiles/cifar10-cpu.yaml --json
    """
    import json

    from smallbatch.pipeline.experiments import plan_columns
    from smallbatch.speed.plan_table import lines

    planned = plan_columns(_load(params_file))
    click.echo(json.dumps(planned.as_json(), indent=1) if as_json else "\n".join(lines(planned)))


@main.command()
@click.argument("study")
@click.argument("batch_size", type=click.IntRange(min=1))
@TIME_LIMIT
@PARAMS
def train(study: str, batch_size: int, time_limit: float | None, params_file: Path) -> None:
    """Train one column: every base learning rate and seed of STUDY at BATCH_SIZE.

    Ctrl-C and SIGTERM stop it within 5 seconds with exit status 75. Whatever ended it, the same
    command goes on from the last checkpoint.

    \b
    Examples:
      smallbatch train resnet8-bn 8
      dvc repro train@resnet8-bn-8
      SMALLBATCH_TIME_LIMIT=3h30m dvc repro
    """
    from smallbatch.pipeline.experiments import train_study_column

    train_study_column(_load(params_file), study, batch_size, time_limit)


@main.command()
@click.option(
    "--dataset",
    default="digits",
    show_default=True,
    help="A built-in data set (digits, cifar10, cifar100), or the one of params.yaml.",
)
@click.option(
    "--model",
    default="resnet8",
    show_default=True,
    help="resnet8, resnet20, resnet32, alexnet, or any timm model.",
)
@click.option(
    "--norm",
    default="none",
    show_default=True,
    help="none, batch, batch_conv (alexnet), ghost or group.",
)
@click.option("--bn-batch-size", type=int, help="Sub-batch of ghost batch norm.")
@click.option(
    "--batch-size", "-m", required=True, type=click.IntRange(min=1), help="m, examples per update."
)
@click.option("--base-lr", type=_BaseLr(), help="η̃ = η/m, the learning rate of one example.")
@click.option("--lr", type=_BaseLr(), help="η of the mean gradient, instead of --base-lr.")
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--weight-decay", default=1e-4, show_default=True, type=float)
@click.option(
    "--warmup",
    default=0.0,
    show_default=True,
    type=float,
    help="Fraction of training, from η/32 up to η.",
)
@click.option(
    "--augment/--no-augment",
    default=False,
    show_default=True,
    help="Random crops after padding by 4, and flips.",
)
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
@TIME_LIMIT
@PARAMS
def run(
    dataset: str,
    batch_size: int,
    base_lr: float | None,
    lr: float | None,
    seed: int,
    device: str,
    time_limit: float | None,
    params_file: Path,
    **settings: Any,
) -> None:
    """Train one run, outside the pipeline, and log it to MLflow like any other.

    \b
    Examples:
      smallbatch run --dataset digits --model resnet8 --norm none --batch-size 4 \\
          --base-lr 2^-6 --epochs 20
      smallbatch run --model resnet20 --norm batch -m 32 --lr 0.1
    """
    from smallbatch.config.params import format_base_lr
    from smallbatch.pipeline.experiments import single_run

    if lr is not None and base_lr is None:
        base_lr = lr / batch_size
        click.echo(f"lr {lr:g} = {batch_size} × base_lr {format_base_lr(base_lr)}")
    elif base_lr is None or lr is not None:
        raise click.UsageError("give one of --base-lr and --lr")
    summary = single_run(
        params_file, dataset, settings, batch_size=batch_size, base_lr=base_lr, seed=seed,
        device=device, time_limit=time_limit,
    )  # fmt: skip
    click.echo(summary)


@main.command()
@PARAMS
def measure(params_file: Path) -> None:
    """Measure how the variance of one update grows with the batch size.

    \b
    Examples:
      smallbatch measure
    """
    from smallbatch.pipeline.experiments import measure_updates

    click.echo(measure_updates(_load(params_file)))


@main.command()
@MODELS
def evaluate(models: Path) -> None:
    """Turn all runs under models/ into tables and metrics.

    \b
    Examples:
      smallbatch evaluate
      dvc metrics show
    """
    from smallbatch.analysis.evaluation import evaluate as evaluate_runs

    for line in evaluate_runs(models).lines():
        click.echo(line)


@main.command()
@MODELS
def report(models: Path) -> None:
    """Write reports/report.html with its figures and tables.

    \b
    Examples:
      smallbatch report
    """
    from smallbatch.report.page import build_report

    click.echo(build_report(models_dir=models))


@main.command()
@click.argument(
    "file", type=click.Path(path_type=Path), default=Path("reports/claims.json"), required=False
)
def claims(file: Path) -> None:
    """Print the verdicts on the paper's claims as a Markdown table.

    FILE defaults to reports/claims.json, which `smallbatch report` writes.

    \b
    Examples:
      smallbatch claims
      smallbatch claims results/paper-cifar10-small/claims.json
    """
    from smallbatch.report.claims import markdown

    click.echo(markdown(file))


@main.command()
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path))
def sync(folders: tuple[Path, ...]) -> None:
    """Replay result files to MLflow; what is there already stays as it is.

    FOLDERS default to models/ and the single runs. MLFLOW_TRACKING_URI names the server; without
    it, mlflow.db in this folder.

    \b
    Examples:
      smallbatch sync
      MLFLOW_TRACKING_URI=http://localhost:5000 smallbatch sync models/digits
    """
    from smallbatch.pipeline.experiments import result_folders
    from smallbatch.tracking import sync as sync_files

    done = sync_files(folders or result_folders())
    click.echo(
        f"{done.columns} columns: {done.runs_created} MLflow runs created, "
        f"{done.runs_updated} completed, {done.unchanged} unchanged; "
        f"{done.points_logged} metric points logged"
    )


@main.command()
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(port: int) -> None:
    """Start the MLflow UI on 127.0.0.1.

    \b
    Examples:
      smallbatch ui
      smallbatch ui --port 5001
    """
    from smallbatch.tracking import ui as start_ui

    start_ui(port=port)


@main.group()
def profile() -> None:
    """Ready-made params.yaml files.

    \b
    Examples:
      smallbatch profile list
      smallbatch profile use cifar10-cpu
    """


@profile.command("list")
def list_profiles() -> None:
    """List the profiles, a line each.

    \b
    Examples:
      smallbatch profile list
    """
    from smallbatch.config import profiles

    for name, summary in profiles.summaries().items():
        click.echo(f"{name:16} {summary}")


@profile.command("show")
@click.argument("name")
@SCALE
def show_profile(name: str, scale: str | None) -> None:
    """Print a profile.

    \b
    Examples:
      smallbatch profile show quick
    """
    from smallbatch.config import profiles

    click.echo(profiles.read(name, scale), nl=False)


@profile.command("use")
@click.argument("name")
@SCALE
@click.option("--force", is_flag=True, help="Replace a params.yaml with edits of its own.")
def use_profile(name: str, scale: str | None, force: bool) -> None:
    """Make a profile the params.yaml of this folder.

    \b
    Examples:
      smallbatch profile use cifar10-cpu && dvc repro
      smallbatch profile use paper-cifar10 --scale small
    """
    from smallbatch.config import profiles

    profiles.install(name, scale, force=force)
    at = f" at scale {scale}" if scale else ""
    click.echo(f"params.yaml is now the profile {name}{at}; `dvc repro` runs it")


main.add_command(bench)


def _load(path: Path) -> Params:
    from smallbatch.config.params import load_params

    return load_params(path)
