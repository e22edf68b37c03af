"""What the CLI's commands do with a params file: train, plan."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.config.params import Params
from smallbatch.config.study import StudyConfig
from smallbatch.errors import Missing, UserError
from smallbatch.pipeline.advise.trials import FOLDER as ADVICE
from smallbatch.pipeline.single import DEFAULT_PARAMS, SINGLE_RUNS, plan_on
from smallbatch.pipeline.tracked import train_and_track

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smallbatch.data.encoded import EncodedDataset
    from smallbatch.data.prepared import Dataset
    from smallbatch.execution.watch import Watch
    from smallbatch.protocol.column import Column
    from smallbatch.speed.plan import Plan
    from smallbatch.tracking import LiveMirror

PREPARED = Path("data/prepared")
MODELS = Path("models")
MEASUREMENTS = Path("reports/measurements")
EVALUATION = Path("reports/evaluation")
_NAMED = 30  # studies or batch sizes in a message; there may be thousands


def train_study_column(
    params: Params,
    study: str,
    batch_size: int,
    time_limit: float | None = None,
    origin: str = str(DEFAULT_PARAMS),
) -> None:
    """Train one column of the pipeline into `models/<dataset>/<study>/m<m>`.

    By `compute.cluster` other machines train it.

    Args:
        params: The checked params file.
        study: The name of the study.
        batch_size: m.
        time_limit: Seconds after which to stop, with all progress kept.
        origin: The name of the params file.

    Raises:
        UserError: The grid has no such column, the data is not prepared with these settings, or the
            batch is larger than the training set.
        Stopped: By a signal or before the time limit.
    """
    if study not in params.running:
        raise UserError(f"study: found {study!r}, {_of_grid(params.running, 'studies')}")
    if batch_size not in params.grid.batch_sizes:
        found = f"batch_size: found {batch_size}"
        raise UserError(f"{found}, {_of_grid(params.grid.batch_sizes, 'batch_sizes')}")

    def elsewhere(mirror: LiveMirror, watch: Watch) -> str:
        from smallbatch.pipeline.cluster.elsewhere import train_elsewhere

        return train_elsewhere(params, origin, study, batch_size, mirror, watch)

    train_and_track(
        lambda: plan_study_column(params, study, batch_size),
        params.compute,
        lambda _: column_folder(params, study, batch_size),
        stage=stage_of(params, study, batch_size),
        time_limit=time_limit,
        elsewhere=None if params.compute.cluster == "none" else elsewhere,
    )


def _of_grid(names: Sequence[object], key: str) -> str:
    shown = ", ".join(map(str, names[:_NAMED]))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"allowed: {shown}{more}, as grid.{key} says; add it there, or `smallbatch run` trains it "
        "outside the grid"
    )


def refuse_for_dvc(params: Params, file: Path) -> None:
    """Refuse a params file that lacks what DVC needs, where DVC reads it; nothing else does.

    Raises:
        UserError: The key that is missing. Of it DVC itself would say less.
    """
    if file != DEFAULT_PARAMS or not Path("dvc.yaml").is_file():
        return
    needed = {
        "grid.dependent": "dependent" in params.grid.model_fields_set,
        # A project that was laid out by an earlier version has no such stage.
        "advise.studies": "studies" in params.advise.model_fields_set
        or "${advise.studies}" not in Path("dvc.yaml").read_text(encoding="utf-8"),
    }
    for key, is_there in needed.items():
        if not is_there:
            raise UserError(
                f"{file}: {key}: missing, which DVC needs; allowed: a list of studies, [] if there "
                "are none"
            )


def best_base_lr(column: Path) -> float:
    """The η̃ (AdamW: η) of a column's best cell: the highest median over seeds, on the test set.

    Raises:
        UserError: The column does not exist, or no cell of it has an accuracy.
    """
    from smallbatch.analysis.cells import summarise_cells
    from smallbatch.analysis.frames import load_results
    from smallbatch.analysis.generalisation import best_cells

    best = best_cells(summarise_cells(load_results(column).runs))
    if best.empty:
        raise UserError(f"{column}: every learning rate diverged, so none is the best")
    return float(best["base_lr"].iloc[0])


def column_folder(params: Params, study: str, batch_size: int) -> Path:
    """The folder of a column's files."""
    return MODELS / params.dataset.name / study / f"m{batch_size}"


def naming_file(file: Path, models: Path) -> Path | None:
    """The params file that says which columns of a folder are evaluated; None: all of them.

    Args:
        file: The params file, as an option gave it.
        models: The folder of the columns. If it is not the pipeline's, the default params file says
            nothing about it.
    """
    if file != DEFAULT_PARAMS:
        return file
    own = models.resolve().is_relative_to(MODELS.resolve())
    return file if own and file.exists() else None


def is_named(params: Params) -> Callable[[str], bool]:
    """Whether a params file names a column, given as ``<dataset>/<study>/m<m>``.

    Of other data sets than its own it says nothing: their columns count as named.
    """
    own = f"{params.dataset.name}/"
    named = {f"{own}{study}/m{batch_size}" for study, batch_size in params.columns}
    return lambda name: name in named or not name.startswith(own)


def stage_of(params: Params, study: str, batch_size: int) -> str:
    """The name of the column's stage in dvc.yaml, where dependent studies are numbered."""
    dependent = [each.name for each in params.grid.dependent]
    if study in dependent:
        return f"train_dependent@study{dependent.index(study)}-{batch_size}"
    return f"train@{study}-{batch_size}"


def plan_columns(params: Params) -> Plan:
    """What the columns of the pipeline will cost; see :func:`~smallbatch.speed.plan.plan`.

    Raises:
        UserError: The shape of the images is not known yet, or only of other settings.
    """
    from smallbatch.data.expected import expected_meta
    from smallbatch.pipeline import code
    from smallbatch.speed.plan import plan

    kept_stages = cache(code.kept_stages)  # it takes a while
    meta, _ = expected_meta(params.dataset, PREPARED / params.dataset.name)

    def base_lrs(study: str, batch_size: int) -> tuple[float, ...]:
        source = params.studies[study].best_of
        if source is None or (
            column_folder(params, source, batch_size).exists()
            and is_as_planned(params, source, batch_size, meta.fingerprint)
        ):
            return _base_lrs(params, study, batch_size, meta.fingerprint)
        return params.base_lrs(source)[:1]  # the best one is not known yet, but all cost the same

    return plan(
        params, prepared=PREPARED, models=MODELS, work=Path(".smallbatch/work"), base_lrs=base_lrs,
        is_kept=lambda study, m: stage_of(params, study, m) in kept_stages(),
    )  # fmt: skip


def result_folders() -> list[Path]:
    """The folders of result files.

    Raises:
        UserError: There are none in the current directory.
    """
    found = [folder for folder in (MODELS, SINGLE_RUNS, ADVICE) if folder.is_dir()]
    if not found:
        raise Missing(f"nothing to sync: neither {MODELS}/ nor {SINGLE_RUNS}/ is in this folder")
    return found


def plan_study_column(
    params: Params, study: str, batch_size: int, base_lrs: Sequence[float] | None = None
) -> Column:
    """The column of a study at a batch size, with the prepared data.

    Args:
        params: The checked params file.
        study: The name of the study.
        batch_size: m.
        base_lrs: Its learning rates; by default the grid's, or the best one of another column.

    Raises:
        UserError: The data is not prepared with these settings, the column whose best learning rate
            is taken does not exist, or the batch is larger than the training set.
    """
    dataset = prepared(params)
    return plan_on(
        dataset,
        study,
        params.studies[study],
        batch_size=batch_size,
        base_lrs=base_lrs or _base_lrs(params, study, batch_size, dataset.meta.fingerprint),
        seeds=params.seeds(study),
    )


def prepared(params: Params) -> Dataset | EncodedDataset:
    """The pipeline's prepared data.

    Raises:
        UserError: There is none with these settings.
    """
    from smallbatch.data.encoded import load_any
    from smallbatch.data.expected import check_prepared

    directory = PREPARED / params.dataset.name
    check_prepared(params.dataset, directory)
    return load_any(directory)


def _base_lrs(params: Params, study: str, batch_size: int, fingerprint: str) -> tuple[float, ...]:
    source = params.studies[study].best_of
    if source is None:
        return params.base_lrs(study)
    folder = column_folder(params, source, batch_size)
    if folder.exists() and not is_as_planned(params, source, batch_size, fingerprint):
        raise UserError(
            f"train {source} {batch_size} first: the column in {folder}, whose best learning "
            f"rate {study} takes, was trained with other settings, grid or data than the "
            "present ones"
        )
    return (best_base_lr(folder),)


def is_as_planned(params: Params, study: str, batch_size: int, fingerprint: str) -> bool:
    """Whether the runs of an independent study's column are those that would now be trained."""
    from smallbatch.records.columns import read_record

    planned = planned_runs(params, study, batch_size, params.base_lrs(study), fingerprint)
    record = read_record(column_folder(params, study, batch_size))
    return planned == {run.run for run in record.runs}


def planned_runs(
    params: Params, study: str, batch_size: int, base_lrs: Sequence[float], fingerprint: str
) -> set[str]:
    """The hashes of a column's runs, from the settings and the data's fingerprint alone."""
    seeds = params.seeds(study)
    return run_hashes(params.studies[study], batch_size, base_lrs, seeds, fingerprint)


def run_hashes(
    study: StudyConfig,
    batch_size: int,
    base_lrs: Sequence[float],
    seeds: Sequence[int],
    fingerprint: str,
) -> set[str]:
    """The same of a study with any seeds."""
    from smallbatch.config.model_files import model_digest
    from smallbatch.protocol.run import Run

    model = model_digest(study)
    return {
        Run(settings, fingerprint, batch_size, base_lr, seed, model).hash
        for settings in study.at(batch_size)
        for base_lr in base_lrs
        for seed in seeds
    }
