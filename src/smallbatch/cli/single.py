"""The command for one run outside the pipeline."""

from __future__ import annotations

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import click

from smallbatch.cli import door
from smallbatch.cli.options import (
    AUGMENT,
    BN_BATCH_SIZE,
    CLUSTER,
    DEVICE,
    FREEZE,
    MICRO_BATCH,
    MODEL,
    MOMENTUM,
    MOST,
    OPTIMIZER,
    PARAMS,
    PRETRAINED,
    SCHEDULE,
    TIME_LIMIT,
    WARMUP,
    WEIGHT_DECAY,
    BaseLr,
)


@click.command()
@click.option(
    "--dataset",
    default="digits",
    show_default=True,
    help="A built-in data set (digits, cifar10, cifar100), or the one of params.yaml.",
)
@MODEL
@PRETRAINED
@FREEZE
@click.option(
    "--norm",
    default="none",
    show_default=True,
    help="none, batch, batch_conv (alexnet), ghost or group.",
)
@BN_BATCH_SIZE
@click.option(
    "--batch-size",
    "-m",
    required=True,
    type=click.IntRange(1, MOST),
    help="m, examples per update.",
)
@click.option("--base-lr", type=BaseLr(), help="η̃ = η/m, the learning rate of one example.")
@click.option(
    "--lr",
    type=BaseLr(),
    help="η of the mean gradient, instead of --base-lr; adamw takes it alone.",
)
@OPTIMIZER
@MOMENTUM
@click.option(
    "--betas",
    type=float,
    nargs=2,
    metavar="B1 B2",
    help="Of adamw; 0.9 and 0.999 by default.",
)
@click.option(
    "--beta2-examples",
    type=float,
    help="In place of adamw's β₂: examples after which a squared gradient counts half.",
)
@SCHEDULE
@click.option("--epochs", default=20, show_default=True, type=click.IntRange(1, MOST))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1))
@WEIGHT_DECAY
@WARMUP
@AUGMENT
@DEVICE
@CLUSTER
@MICRO_BATCH
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else.")
@TIME_LIMIT
@PARAMS
def run(
    dataset: str,
    batch_size: int,
    base_lr: float | None,
    lr: float | None,
    seed: int,
    device: str,
    cluster: str | None,
    micro_batch: int | str | None,
    as_json: bool,
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
      smallbatch run -m 32 --optimizer adamw --lr 2^-9 --schedule cosine --warmup 0.1
      smallbatch run -m 32 --lr 0.1 --cluster slurm
      smallbatch run -m 1024 --micro-batch 64 --base-lr 2^-8
    """
    import json
    from functools import partial

    from smallbatch.config.base_lr import format_base_lr, parse_base_lr, refuse_overflow
    from smallbatch.pipeline.single import single_run

    say = partial(click.echo, err=True) if as_json else door.say
    adamw = settings["optimizer"] == "adamw"
    if adamw and (lr is None or base_lr is not None):
        raise click.UsageError("--optimizer adamw: give --lr, as its learning rate is η, not η̃")
    if (lr is None) == (base_lr is None):
        raise click.UsageError("give one of --base-lr and --lr")
    option, value = ("--lr", lr) if base_lr is None else ("--base-lr", base_lr)
    try:
        examples = 1 if adamw else batch_size
        base_lr = parse_base_lr(lr / examples if lr is not None else base_lr)
        refuse_overflow(base_lr, examples)
    except ValueError as error:
        found = f"found {value:g} at batch size {batch_size}, {error}"
        raise click.BadParameter(found, param_hint=option) from None
    if lr is not None and not adamw:
        say(f"lr {lr:g} = {batch_size} × base_lr {format_base_lr(base_lr)}")
    settings = {key: value for key, value in settings.items() if value is not None}
    # What a model prints goes to standard error, where standard output is JSON.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        done = single_run(
            params_file, dataset, settings, batch_size=batch_size, base_lr=base_lr, seed=seed,
            device=device, cluster=cluster, micro_batch=micro_batch or "auto",
            time_limit=time_limit, say=say,
        )  # fmt: skip
    found = {"folder": str(done.folder), "remark": done.remark, **done.record}
    click.echo(json.dumps(found) if as_json else str(done))
