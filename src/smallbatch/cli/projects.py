"""The command that lays out a project."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from smallbatch.cli import door
from smallbatch.cli.options import MOST, SCALE, BatchSizes
from smallbatch.errors import UserError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path(), metavar="[DIR]")
@click.option("--profile", help="A ready-made params.yaml; by default quick.")
@SCALE
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A folder of images, CLASS/* or train/CLASS/* and test/CLASS/*, instead of a profile.",
)
@click.option(
    "--model",
    help="With --data: resnet8, resnet20, resnet32, alexnet, any timm model, or module:factory.",
)
@click.option("--norm", help="With --data: the model's norm; by default batch.")
@click.option("--batch-sizes", type=BatchSizes(), help="With --data: such as 4,16,64.")
@click.option(
    "--epochs",
    type=click.IntRange(1, MOST),
    help="With --data: of each run; by default 30.",
)
def init(
    folder: Path,
    profile: str | None,
    scale: str | None,
    data: Path | None,
    model: str | None,
    norm: str | None,
    batch_sizes: tuple[int, ...] | None,
    epochs: int | None,
) -> None:
    """Lay out a project in DIR, by default this folder.

    Writes params.yaml, dvc.yaml and what DVC and git need, and starts a git repository where there
    is none. No file is overwritten, and nothing committed.

    \b
    Examples:
      smallbatch init
      smallbatch init small --profile paper-cifar10 --scale small
      smallbatch init flowers --data /data/flowers --model resnet18
    """
    from smallbatch.config import profiles
    from smallbatch.projects.init import lay_out

    images = data
    if data is None:
        own = {"--model": model, "--norm": norm, "--batch-sizes": batch_sizes, "--epochs": epochs}
        if given := [name for name, value in own.items() if value is not None]:
            raise UserError(
                f"{', '.join(given)}: allowed with --data; a profile has its own settings"
            )
        params = profiles.read(profile or "quick", scale)
        images = profiles.own_images(profile or "quick")
    else:
        from smallbatch.projects.own_images import params_for

        if profile is not None or scale is not None:
            raise UserError("--data and --profile or --scale: found both, allowed: one of them")
        if model is None:
            raise UserError("--model: missing, allowed: any timm model, such as resnet18")
        params = params_for(
            data,
            model,
            norm=norm or "batch",
            batch_sizes=batch_sizes or (),
            epochs=epochs or 30,
            project=folder,
        )
    new = lay_out(folder, params)
    door.say(f"{folder.resolve()}: {', '.join(new) if new else 'was laid out so already'}")
    door.say("Next:")
    if data is None and images is not None and not (folder / images).exists():
        door.say(f"  put your images into {folder / images}, or set dataset.path in params.yaml")
    for line in _next(folder, prepares=images is not None):
        door.say(f"  {line}")


def _next(folder: Path, *, prepares: bool) -> list[str]:
    """The three commands that come next."""
    there = folder.resolve() == Path.cwd()
    first = [] if there else [f"cd {shlex.quote(str(folder))}"]
    plan = ["smallbatch prepare", "smallbatch plan"] if prepares else ["smallbatch plan"]
    return [
        f"{' && '.join([*first, *plan])}  # what it costs on this machine",
        "dvc repro  # trains everything, and ends with the answer and reports/report.html",
        "smallbatch ui  # every run in MLflow",
    ]
