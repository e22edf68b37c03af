"""The `smallbatch bench` command; imports large libraries only when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smallbatch.cli.options import MOST, FloatRange


@click.command()
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    default=["digits", "noise"],
    show_default=True,
    help="digits (8×8), cifar10 or noise (32×32); may be repeated.",
)
@click.option(
    "--path", type=click.Path(path_type=Path), help="CIFAR-10 as a folder of parquet files."
)
@click.option(
    "--image-size", type=click.IntRange(4, 1024), help="Pixels that images are resized to."
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["resnet8"],
    show_default=True,
    help="May be repeated.",
)
@click.option("--norm", default="batch", show_default=True)
@click.option(
    "--bn-batch-size", type=click.IntRange(2, MOST), help="Sub-batch of ghost batch norm."
)
@click.option("--augment/--no-augment", default=False, show_default=True)
@click.option(
    "--batch-size",
    "-m",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(1, MOST),
    default=[2, 8, 32, 128],
    show_default=True,
    help="m; may be repeated.",
)
@click.option(
    "--lanes",
    default=26,
    show_default=True,
    type=click.IntRange(1, MOST),
    help="Runs of the column: 13 base learning rates × 2 seeds.",
)
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(["textbook", "loop", "stacked", "jax"]),
    default=["textbook", "loop", "stacked"],
    show_default=True,
    help="May be repeated. jax: three peers in JAX, if it is installed.",
)
@click.option(
    "--optimizer",
    "optimizers",
    multiple=True,
    type=click.Choice(["sgd", "momentum", "nesterov", "adamw"]),
    default=["sgd"],
    show_default=True,
    help="May be repeated.",
)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1, MOST))
@click.option(
    "--seconds",
    default=2.0,
    show_default=True,
    type=FloatRange(0.2, 3600),
    help="Of one measurement, at least.",
)
@click.option(
    "--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"])
)
@click.option(
    "--quick", is_flag=True, help="8×8 digits, few lanes, one short repeat: under a minute."
)
@click.option("--out", type=click.Path(path_type=Path), help="JSON of every repeat.")
@click.option("--table", type=click.Path(path_type=Path), help="The table, as markdown.")
def bench(
    datasets: tuple[str, ...],
    path: Path | None,
    image_size: int | None,
    engines: tuple[str, ...],
    device: str,
    quick: bool,
    out: Path | None,
    table: Path | None,
    **settings: Any,
) -> None:
    """Measure training images per second: a plain script, loop and stacked.

    Beside them stand the bytes that one update needs by loop, and by a single lane of stacked.
    Needs the machine for itself: about five minutes as it stands on two cores. What it learns,
    `engine: auto` uses. Figures that other programs disturbed stand in brackets and do not count.

    \b
    Examples:
      smallbatch bench --out results/bench/cpu.json --table results/bench/cpu.md
      smallbatch bench --dataset cifar10 --path ../cifar10 -m 2 -m 2048 --engine stacked
      smallbatch bench --optimizer sgd --optimizer momentum --optimizer adamw -m 2
      smallbatch bench --engine jax --engine stacked -m 2 -m 32
      smallbatch bench --model resnet8 --model resnet20 --model alexnet --dataset noise
      smallbatch bench --quick
    """
    from smallbatch.speed.bench.command import QUICK
    from smallbatch.speed.bench.command import bench as measure

    if quick:
        settings |= {name: value for name, value in QUICK.items() if not _was_given(name)}
        datasets = datasets if _was_given("datasets") else ("digits",)
    click.echo(
        measure(
            datasets=datasets, path=path, image_size=image_size, engines=engines, out=out,
            table=table, device=device, learn=not quick, settings=settings,
        )
    )  # fmt: skip


def _was_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is not None and source.name == "COMMANDLINE"
