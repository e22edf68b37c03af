"""Commands for ready-made params files."""

from __future__ import annotations

from pathlib import Path

import click

from smallbatch.cli import door
from smallbatch.cli.options import SCALE


@click.group()
def profile() -> None:
    """Ready-made params.yaml files.

    \b
    Examples:
      smallbatch profile list
      smallbatch profile use cifar10-cpu
    """


@profile.command("list")
def list_profiles() -> None:
    """List the profiles: what each is, and what each of its scales costs.

    \b
    Examples:
      smallbatch profile list
    """
    from smallbatch.config import profiles

    costs = profiles.costs()
    for name, summary in profiles.summaries().items():
        door.say(f"{name:16} {summary}")
        for line in costs[name]:
            door.say(f"{'':18} {line}")


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
    steps = ["`dvc repro` runs it"]
    if (images := profiles.own_images(name)) and not images.exists():
        steps.insert(0, f"put your images into {images} or set dataset.path")
    if not Path("dvc.yaml").exists():
        asked = f"--profile {name}" + (f" --scale {scale}" if scale else "")
        steps.insert(0, f"`smallbatch init {asked}` makes this folder a project")
    at = f" at scale {scale}" if scale else ""
    click.echo(f"params.yaml is now the profile {name}{at}; {', then '.join(steps)}")
