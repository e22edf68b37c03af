"""Commands for the stages of the pipeline, and for what they will cost."""

from __future__ import annotations

from pathlib import Path

import click

from smallbatch.cli import door
from smallbatch.cli.options import (
    CLUSTER,
    MICRO_BATCH,
    MOST,
    PARAMS,
    TIME_LIMIT,
    in_parts,
    load,
    on_cluster,
)


@click.command(hidden=True)
def code() -> None:
    """List below .smallbatch/code/ which modules decide each stage's output: a stage of DVC.

    \b
    Examples:
      smallbatch code
    """
    from smallbatch.pipeline.code import write

    for path in write():
        click.echo(path)


@click.command()
@PARAMS
def prepare(params_file: Path) -> None:
    """Make the data set's arrays under data/prepared/, or its shards of encoded images.

    Shards that are finished when it is interrupted are kept, and the same command goes on.

    \b
    Examples:
      smallbatch prepare
      smallbatch prepare --params other.yaml
    """
    from smallbatch.data.prepare import prepare as prepare_data
    from smallbatch.data.prepared import SPLITS
    from smallbatch.pipeline.experiments import refuse_for_dvc
    from smallbatch.pipeline.fits import (
        check_batch_sizes,
        check_kept,
        check_micro_batch,
        check_models,
    )
    from smallbatch.pipeline.held import held_params, prepare_inputs
    from smallbatch.pipeline.image_progress import ImageProgress

    with held_params(params_file, prepare_inputs) as params:
        refuse_for_dvc(params, params_file)

        def begin(train: int, short_side: int | None) -> None:
            check_batch_sizes(params, params_file, train)
            check_kept(params, short_side, door.say)
            check_micro_batch(params, train, short_side)

        with ImageProgress(params.dataset.name) as progress:
            meta = prepare_data(params.dataset, say=door.say, told=progress.told, begin=begin)
    check_batch_sizes(params, params_file, meta.counts["train"])
    check_models(params, meta)
    counts = ", ".join(f"{n} {split}" for split in SPLITS if (n := meta.counts.get(split)))
    shape = f"{meta.channels}×{meta.height}×{meta.width}"
    if meta.short_side is not None:
        shape = f"of a short side up to {meta.short_side}, for crops {shape}"
    click.echo(f"data/prepared/{meta.name}: {counts} images {shape}, {len(meta.classes)} classes")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@PARAMS
def plan(as_json: bool, params_file: Path) -> None:
    """Show what the params file will cost, column by column, before any training.

    The time is this machine's, from a calibration of seconds that is kept for the next time.

    \b
    Examples:
      smallbatch plan
      smallbatch plan --json
      smallbatch profile show cifar10-cpu > other.yaml && smallbatch plan --params other.yaml
    """
    import json

    from smallbatch.pipeline.experiments import plan_columns, refuse_for_dvc
    from smallbatch.speed.plan_table import lines

    params = load(params_file)
    refuse_for_dvc(params, params_file)
    planned = plan_columns(params)
    click.echo(json.dumps(planned.as_json(), indent=1) if as_json else "\n".join(lines(planned)))


@click.command()
@click.argument("study")
@click.argument("batch_size", type=click.IntRange(1, MOST))
@MICRO_BATCH
@CLUSTER
@TIME_LIMIT
@PARAMS
def train(
    study: str,
    batch_size: int,
    micro_batch: int | str | None,
    cluster: str | None,
    time_limit: float | None,
    params_file: Path,
) -> None:
    """Train one column of the grid: every base learning rate and seed of STUDY at BATCH_SIZE.

    Ctrl-C and SIGTERM stop it within 5 seconds with exit status 75. Whatever ended it, the same
    command goes on from the last checkpoint. A cluster's work goes on meanwhile.

    \b
    Examples:
      smallbatch train resnet8-bn 8
      smallbatch train resnet50-ghost 4096 --micro-batch 64
      dvc repro train@resnet8-bn-8
      SMALLBATCH_TIME_LIMIT=3h30m dvc repro
    """
    from smallbatch.pipeline.experiments import train_study_column
    from smallbatch.pipeline.held import held_params, train_inputs

    with held_params(params_file, lambda now: train_inputs(now, study, batch_size)) as params:
        params = on_cluster(in_parts(params, micro_batch), cluster)
        train_study_column(params, study, batch_size, time_limit, str(params_file))


@click.command(hidden=True)
@click.argument("task_file", type=click.Path(path_type=Path))
def work(task_file: Path) -> None:
    """Train the column of a task file of a cluster's board, in this project.

    \b
    Examples:
      smallbatch work .smallbatch/cluster/digits-resnet8-m8/task-1.json
    """
    from smallbatch.pipeline.cluster.work import work as carry_out

    carry_out(task_file)


@click.command()
@PARAMS
def measure(params_file: Path) -> None:
    """Measure how the variance and the memory of one update grow with the batch size.

    \b
    Examples:
      smallbatch measure
    """
    from smallbatch.pipeline import measurements
    from smallbatch.pipeline.held import held_params, measure_inputs

    with held_params(params_file, measure_inputs) as params:
        written = measurements.measure(params)
    for path in written:
        click.echo(path)
