"""The command that advises on batch size and learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smallbatch.cli import door
from smallbatch.cli.options import (
    AUGMENT,
    BN_BATCH_SIZE,
    DEVICE,
    FREEZE,
    MODEL,
    MOMENTUM,
    MOST,
    OPTIMIZER,
    PARAMS,
    PRETRAINED,
    SCHEDULE,
    WARMUP,
    WEIGHT_DECAY,
    BatchSizes,
)

if TYPE_CHECKING:
    from smallbatch.analysis.advice import Advice


@click.command()
@click.option(
    "--data",
    help="Your images: a folder with a folder for each class, Parquet, or a built-in data set "
    "(digits, cifar10, cifar100).",
)
@MODEL
@click.option(
    "--budget",
    default="20m",
    show_default=True,
    help="What may be spent: a time such as 20m or 2h, or images=2e6, training images seen by all "
    "runs together.",
)
@click.option("--batch-sizes", type=BatchSizes(), help="m; by default 4,16,64, as many as fit.")
@click.option(
    "--target",
    type=click.Choice(["accuracy", "time"]),
    default="accuracy",
    show_default=True,
    help="The highest accuracy, or the shortest training that cannot be told from it.",
)
@click.option(
    "--epochs",
    type=click.IntRange(2, MOST),
    help="Of a training; by default what the budget allows.",
)
@OPTIMIZER
@MOMENTUM
@SCHEDULE
@WEIGHT_DECAY
@WARMUP
@click.option(
    "--norm",
    default="batch",
    show_default=True,
    help="none, batch, batch_conv (alexnet), ghost or group.",
)
@BN_BATCH_SIZE
@AUGMENT
@PRETRAINED
@FREEZE
@click.option(
    "--image-size",
    type=click.IntRange(4, 1024),
    help="Pixels of a side that images are resized to; by default as they are, 64 at most.",
)
@click.option(
    "--study", help="A study of params.yaml, with its `advise` section, instead of the above."
)
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, and nothing else.")
@PARAMS
@click.pass_context
def advise(ctx: click.Context, study: str | None, as_json: bool, params_file: Path,
           **options: Any) -> None:  # fmt: skip
    """Which batch size and learning rate to use for your model and images, within a budget.

    Tries where training breaks, races the rest, and compares the two best with fresh seeds. The
    answer is printed, with pictures in reports/advice.html and all numbers in reports/advice.json.
    The same command goes on after an interruption.

    \b
    Examples:
      smallbatch advise --data photos --model resnet18 --budget 20m
      smallbatch advise --data cifar10 --model resnet18 --optimizer adamw --budget 2h
      smallbatch advise --data digits --budget images=1e6 --batch-sizes 2,8,32 --target time
    """
    import json
    import sys
    from contextlib import nullcontext, redirect_stdout
    from dataclasses import asdict
    from functools import partial

    from smallbatch.pipeline.advise.advise import advise as find
    from smallbatch.pipeline.advise.requests import of_options, of_study
    from smallbatch.report.advice_code import code_to_paste

    if study is not None:
        typed = click.core.ParameterSource.COMMANDLINE
        given = [name for name in options if ctx.get_parameter_source(name) is typed]
        if given:
            option = given[0].replace("_", "-")
            raise click.UsageError(f"--study takes all from params.yaml, without --{option}")
        request, folder, name = of_study(params_file, study), Path("reports/advice"), study
    else:
        if options["data"] is None:
            raise click.UsageError("Missing option '--data'.")
        request, folder, name = of_options(params_file, options), Path("reports"), "advice"
    say = partial(click.echo, err=True) if as_json else door.say

    def write(advice: Advice) -> None:
        from smallbatch.report.advice import write_advice  # seconds to import

        write_advice(advice, folder, name)

    # What a model prints goes to standard error, where standard output is JSON.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        advice = find(request, say, code_to_paste, write)
    if as_json:
        click.echo(json.dumps(asdict(advice)))
        return
    from smallbatch.report.advice import advice_text

    click.echo()
    click.echo(advice_text(advice, [folder / f"{name}.html", folder / f"{name}.json"]))
