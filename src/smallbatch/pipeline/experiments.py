"""Puts the parts together for the CLI: a checked params file, a column trained and tracked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.config.params import (
    ComputeConfig,
    DatasetConfig,
    Params,
    load_params,
    parse_compute,
    parse_dataset,
    parse_study,
)
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from smallbatch.execution.watch import Watch
    from smallbatch.placement.placement import Placement
    from smallbatch.protocol.column import Column
    from smallbatch.protocol.run import Run
    from smallbatch.speed.plan import Plan
    from smallbatch.tracking import ColumnInfo, LiveMirror

DEFAULT_PARAMS = Path("params.yaml")
PREPARED = Path("data/prepared")
MODELS = Path("models")
SINGLE_RUNS = Path(".smallbatch/runs")  # outside models/: no part of the pipeline's outputs
MEASUREMENTS = Path("reports/measurements")
SINGLE_RUNS_DATA = Path(".smallbatch/data")
BUILT_IN = ("digits", "cifar10", "cifar100")


def train_study_column(
    params: Params, study: str, batch_size: int, time_limit: float | None = None
) -> None:
    """Train one column of the pipeline into `models/<dataset>/<study>/m<m>`.

    Args:
        params: the checked params file.
        study: its name.
        batch_size: m.
        time_limit: seconds after which to stop with all progress kept.

    Raises:
        UserError: an unknown study, data not prepared, a batch larger than the training set.
        Stopped: by a signal or before the time limit.
    """
    if study not in params.studies:
        raise UserError(f"study: found {study!r}, allowed: {', '.join(params.studies)}")
    _train_and_track(
        lambda: _plan(study, params, batch_size),
        params.compute,
        lambda _: _column_folder(params, study, batch_size),
        stage=_stage(params, study, batch_size),
        time_limit=time_limit,
    )


def measure_updates(params: Params) -> Path:
    """Measure the variance of updates for the models without batch norm among the studies.

    Returns:
        The table, a row per model, seed and batch size; without rows where there is no such study.

    Raises:
        UserError: the data is not prepared.
    """
    import pandas as pd

    from smallbatch.analysis.evaluation import write_table
    from smallbatch.data.prepared import load_prepared
    from smallbatch.engines.update_variance import measure_study

    dataset = load_prepared(PREPARED / params.dataset.name)
    studies = {params.studies[name].model: name for name in reversed(params.grid.studies)
               if params.studies[name].norm == "none"}  # fmt: skip
    rows = [
        row
        for name in reversed(studies.values())
        for row in measure_study(
            name,
            params.studies[name],
            dataset,
            seeds=range(params.grid.seeds),
        )
    ]
    columns = ["dataset", "study", "seed", "batch_size", "base_lr", "variance"]
    path = MEASUREMENTS / f"{params.dataset.name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pd.DataFrame(rows, columns=columns), path)
    return path


def best_base_lr(column: Path) -> float:
    """The η̃ of a column's best cell: the highest median over seeds, on the test set.

    Raises:
        UserError: the column is not there, or none of its cells has an accuracy.
    """
    from smallbatch.analysis.cells import summarise_cells
    from smallbatch.analysis.frames import load_results
    from smallbatch.analysis.generalisation import best_cells

    best = best_cells(summarise_cells(load_results(column).runs))
    if best.empty:
        raise UserError(f"{column}: every base learning rate diverged, so none is the best")
    return float(best["base_lr"].iloc[0])


def _column_folder(params: Params, study: str, batch_size: int) -> Path:
    return MODELS / params.dataset.name / study / f"m{batch_size}"


def _stage(params: Params, study: str, batch_size: int) -> str:
    """The column's stage in dvc.yaml, which numbers the dependent studies."""
    dependent = [each.name for each in params.grid.dependent]
    if study in dependent:
        return f"train_dependent@study{dependent.index(study)}-{batch_size}"
    return f"train@{study}-{batch_size}"


def single_run(
    params_file: Path,
    dataset: str,
    settings: dict[str, Any],
    *,
    batch_size: int,
    base_lr: float,
    seed: int,
    device: str,
    time_limit: float | None = None,
) -> str:
    """Train one run outside the pipeline; returns one line of results.

    Args:
        params_file: consulted only if it names the data set.
        dataset: a built-in data set, or the name of the params file's.
        settings: of the study, as `params.yaml` writes them.
        batch_size: m.
        base_lr: η̃.
        seed: of weights and stream.
        device: ``auto``, ``cpu`` or ``cuda``.
        time_limit: seconds after which to stop with all progress kept.

    Raises:
        UserError: bad settings, unknown data set.
        Stopped: by a signal or before the time limit.
    """
    from smallbatch.config.model_names import validate_model
    from smallbatch.data.prepared import load_prepared
    from smallbatch.protocol.column import plan_column

    study = parse_study(settings, "run")
    validate_model(
        study.model, study.norm, batch_size=batch_size, bn_batch_size=study.bn_batch_size
    )
    name = f"{study.model}-{study.norm}".lower()

    def plan() -> Column:
        data = load_prepared(_prepared_for_itself(_dataset_config(params_file, dataset)))
        return plan_column(
            name, study, data, batch_size=batch_size, base_lrs=[base_lr], seeds=[seed]
        )

    column_dir = _train_and_track(
        plan,
        parse_compute({"device": device}, "run"),
        lambda column: SINGLE_RUNS / dataset / name / column.runs[0].hash,
        stage=None,
        time_limit=time_limit,
    )
    run = json.loads((column_dir / "runs.json").read_text())["runs"][0]
    if run["outcome"] == "diverged":
        return f"diverged at update {run['diverged_at']} of {run['updates']}: {column_dir}"
    final = run["final"]
    return (
        f"test accuracy {final['test_accuracy']:.4f}, train accuracy {final['train_accuracy']:.4f} "
        f"after {run['updates']} updates: {column_dir}"
    )


def plan_columns(params: Params) -> Plan:
    """What the pipeline's columns will cost; see :func:`~smallbatch.speed.plan.plan`.

    Raises:
        UserError: the shape of the images cannot be told yet.
    """
    from smallbatch.speed.plan import plan

    def base_lrs(study: str, batch_size: int) -> tuple[float, ...]:
        source = params.studies[study].best_of
        if source is None or _column_folder(params, source, batch_size).exists():
            return _base_lrs(params, study, batch_size)
        return params.grid.base_lrs[:1]  # the best is not known yet; any costs the same

    return plan(
        params, prepared=PREPARED, models=MODELS, work=Path(".smallbatch/work"), base_lrs=base_lrs
    )


def result_folders() -> list[Path]:
    """Folders that hold result files.

    Raises:
        UserError: there are none in the current directory.
    """
    found = [folder for folder in (MODELS, SINGLE_RUNS) if folder.is_dir()]
    if not found:
        raise UserError(f"nothing to sync: neither {MODELS}/ nor {SINGLE_RUNS}/ is in this folder")
    return found


def _plan(study: str, params: Params, batch_size: int) -> Column:
    from smallbatch.data.prepared import load_prepared
    from smallbatch.protocol.column import plan_column

    return plan_column(
        study,
        params.studies[study],
        load_prepared(PREPARED / params.dataset.name),
        batch_size=batch_size,
        base_lrs=_base_lrs(params, study, batch_size),
        seeds=range(params.grid.seeds),
    )


def _base_lrs(params: Params, study: str, batch_size: int) -> tuple[float, ...]:
    source = params.studies[study].best_of
    if source is None:
        return params.base_lrs(study)
    return (best_base_lr(_column_folder(params, source, batch_size)),)


def _prepared_for_itself(config: DatasetConfig) -> Path:
    """Prepare a data set for single runs, once per configuration and apart from the pipeline's."""
    from smallbatch.data.prepare import prepare

    if config.path is None and config.source in ("cifar10", "cifar100"):
        config = config.model_copy(update={"path": f"data/raw/{config.source}"})
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    directory = SINGLE_RUNS_DATA / digest / "prepared" / config.name
    if not directory.exists():
        prepare(config, SINGLE_RUNS_DATA / digest)
    return directory


def _dataset_config(params_file: Path, dataset: str) -> DatasetConfig:
    default = params_file == DEFAULT_PARAMS
    params = None if default and not params_file.exists() else load_params(params_file)
    if params is not None and params.dataset.name == dataset:
        return params.dataset
    if dataset in BUILT_IN:
        return parse_dataset({"name": dataset, "source": dataset}, "run")
    own = () if params is None or params.dataset.name in BUILT_IN else (params.dataset.name,)
    raise UserError(f"--dataset: found {dataset!r}, allowed: {', '.join((*BUILT_IN, *own))}")


def _train_and_track(
    plan: Callable[[], Column],
    compute: ComputeConfig,
    folder: Callable[[Column], Path],
    *,
    stage: str | None,
    time_limit: float | None,
) -> Path:
    from smallbatch.execution.watch import Watch

    with Watch(time_limit) as watch:
        return _watched(plan, compute, folder, stage, watch)


def _watched(
    plan: Callable[[], Column],
    compute: ComputeConfig,
    folder: Callable[[Column], Path],
    stage: str | None,
    watch: Watch,
) -> Path:
    from smallbatch.pipeline.progress import Progress
    from smallbatch.tracking import LiveMirror

    mirror = LiveMirror()  # before torch: its process imports mlflow meanwhile
    try:
        from smallbatch import machine
        from smallbatch.execution.column import train_column
        from smallbatch.placement.placement import place
        from smallbatch.speed.calibration import find_out

        column = plan()
        directory = folder(column)
        find_out(column, compute)
        placement = place(column, compute)
        environment = machine.describe(placement.device)
        mirror.start(_column_info(column, placement, environment, stage))
        title = f"{column.dataset.meta.name}/{column.study} m={column.batch_size}"
        epochs, images = column.runs[0].settings.epochs, column.dataset.meta.counts["train"]
        with Progress(title, len(column.runs), epochs, images) as progress:
            observers = [progress, _Tracked(mirror, column)]
            train_column(
                column,
                directory,
                placement=placement,
                checkpoint_seconds=compute.checkpoint_seconds,
                observers=observers,
                stage=stage,
                environment=environment,
                watch=watch,
            )
    except BaseException:
        mirror.abort()
        raise
    mirror.finish(directory, timeout_s=min(60.0, watch.left))
    watch.check()
    return directory


def _column_info(
    column: Column, placement: Placement, environment: dict[str, Any], stage: str | None
) -> ColumnInfo:
    from smallbatch.protocol.run import PROTOCOL
    from smallbatch.records import files
    from smallbatch.tracking import ColumnInfo

    meta = column.dataset.meta
    return ColumnInfo(
        dataset=meta.name,
        fingerprint=meta.fingerprint,
        study=column.study,
        batch_size=column.batch_size,
        settings=files.recorded_settings(column.runs[0]),
        source=meta.source,
        stage=stage,
        single=column.runs[0].hash if stage is None else None,
        environment={**environment, "device": placement.device, "engine": placement.engine},
        protocol=PROTOCOL,
    )


class _Tracked:
    """Tells a mirror of a column's epochs; see :class:`~execution.column.Observer`."""

    def __init__(self, mirror: LiveMirror, column: Column) -> None:
        from smallbatch.tracking import RunInfo

        self._mirror = mirror
        self._infos = {
            run.hash: RunInfo(
                run.hash,
                run.base_lr,
                run.seed,
                column.updates(run),
                run.settings.bn_batch_size,
            )
            for run in column.runs
        }

    def run_epoch(self, run: Run, row: dict[str, Any]) -> None:
        self._mirror.run_epoch(self._infos[run.hash], row)

    def run_done(self, run: Run, outcome: str) -> None:
        """Nothing: the result files tell how a run ended."""
