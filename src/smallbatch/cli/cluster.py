"""Commands for columns that a cluster trains."""

from __future__ import annotations

from pathlib import Path

import click

from smallbatch.cli.options import CLUSTER, MOST, PARAMS, load, on_cluster
from smallbatch.errors import UserError

_BATCH_SIZES = click.option(
    "--batch-size", "batch_sizes", type=click.IntRange(1, MOST), multiple=True,
    help="Only these; may be repeated.",
)  # fmt: skip


@click.command()
@click.argument("studies", nargs=-1)
@_BATCH_SIZES
@CLUSTER
@click.option("--wait/--detach", default=True, help="Whether to wait for them.  [default: wait]")
@PARAMS
def submit(
    studies: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    cluster: str | None,
    wait: bool,
    params_file: Path,
) -> None:
    """Have the columns that lack runs trained by a cluster, without DVC.

    STUDIES default to all that are run. Ctrl-C ends the waiting, not the cluster's work; the same
    command waits again.

    \b
    Examples:
      smallbatch submit --cluster ray
      smallbatch submit resnet8-bn --batch-size 8 --batch-size 32 --detach
    """
    from smallbatch.pipeline.cluster.elsewhere import submit_columns

    params = on_cluster(load(params_file), cluster)
    for study in studies:
        if study not in params.running:
            raise UserError(f"study: found {study!r}, allowed: {', '.join(params.running)}")
    for m in batch_sizes:
        if m not in params.grid.batch_sizes:
            sizes = ", ".join(map(str, params.grid.batch_sizes))
            raise UserError(f"--batch-size: found {m}, allowed: {sizes}")
    columns = [
        (study, m)
        for study, m in params.columns
        if study in (studies or params.running) and m in (batch_sizes or params.grid.batch_sizes)
    ]
    click.echo(submit_columns(params, str(params_file), columns, wait=wait))


@click.command()
def status() -> None:
    """Show the columns that were submitted: queued, running where and how fast, done, failed.

    \b
    Examples:
      smallbatch status
    """
    from smallbatch.cli.door import shown
    from smallbatch.pipeline.cluster.elsewhere import status_lines

    for line in status_lines():
        click.echo(shown(line))


@click.command()
@click.argument("studies", nargs=-1)
@_BATCH_SIZES
def cancel(studies: tuple[str, ...], batch_sizes: tuple[int, ...]) -> None:
    """End the cluster's work on columns; finished runs and the last checkpoints are kept.

    STUDIES default to all; what `smallbatch status` shows names one column, or a run outside the
    pipeline.

    \b
    Examples:
      smallbatch cancel
      smallbatch cancel resnet8-bn --batch-size 8
    """
    from smallbatch.pipeline.cluster.elsewhere import cancel_columns
    from smallbatch.text import count

    ended = cancel_columns(studies, batch_sizes)
    click.echo(f"{count(len(ended), 'column')} cancelled" if ended else "nothing is under way")
