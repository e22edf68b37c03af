"""What `smallbatch measure` does: variances of updates, and the memory that they need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smallbatch import private
from smallbatch.errors import UserError
from smallbatch.pipeline.experiments import MEASUREMENTS, prepared
from smallbatch.pipeline.progress import say

if TYPE_CHECKING:
    from pathlib import Path

    from smallbatch.config.params import Params
    from smallbatch.config.study import StudyConfig
    from smallbatch.data.encoded import EncodedDataset
    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.kinds import Engine

_ENGINES: tuple[Engine, ...] = ("loop", "stacked")
_PLACE = ["dataset", "fingerprint", "study", "model", "norm"]


def measure(params: Params) -> list[Path]:
    """Measure the variance of updates, and count the memory that they need.

    Returns:
        The paths of the two tables.

    Raises:
        UserError: The data is not prepared with these settings.
    """
    dataset = prepared(params)
    return [measure_updates(params, dataset), measure_memory(params, dataset)]


def measure_updates(params: Params, dataset: Dataset | EncodedDataset) -> Path:
    """Measure the variance of updates for those models of the studies that have no batch norm.

    Studies with another optimiser than plain SGD are left out, and images that are kept encoded: a
    measurement needs the same few batches very often.

    Returns:
        The path of the table, with a row per model, seed, batch size and point of training; without
        rows if there is no such study.
    """
    from smallbatch.data.encoded import EncodedDataset
    from smallbatch.engines.update_variance import measure_study

    rows: list[dict[str, Any]] = []
    nothing = "no variance of updates is measured"
    if isinstance(dataset, EncodedDataset):
        say(params.dataset.name, f"{nothing}: the images are kept encoded")
    elif not (studies := measured_studies(params)):
        say(params.dataset.name, f"{nothing}: no study by plain SGD without batch norm")
    else:
        for name, study in studies.items():
            rows += measure_study(name, study, dataset, seeds=params.seeds(name))
    columns = [*_PLACE, "seed", "batch_size", "base_lr", "seen", "variance"]
    return _write(f"{params.dataset.name}.csv", rows, columns)


def measured_studies(params: Params) -> dict[str, StudyConfig]:
    """The studies whose updates are measured: the first of each model without batch norm.

    What is measured is plain SGD's update, so studies with another optimiser are left out.
    """
    first = {params.studies[name].model: name for name in reversed(params.grid.studies)
             if params.studies[name].norm == "none"
             and params.studies[name].optimizer == "sgd"}  # fmt: skip
    return {name: params.studies[name] for name in reversed(first.values())}


def measure_memory(params: Params, dataset: Dataset | EncodedDataset) -> Path:
    """Count the bytes of one update of one run, for every study and m of the grid.

    What cannot be counted is left out, and a line says at which m and by which engine.

    Returns:
        The path of the table, with a row per study, batch size and engine.

    Raises:
        UserError: The device that ``compute.device`` names does not exist.
    """
    from smallbatch.analysis.measurements import MEMORY
    from smallbatch.placement.placement import resolve_device

    device = resolve_device(params.compute.device)
    rows: list[dict[str, Any]] = []
    for name in params.running:
        rows += _memory_of(name, params, dataset, device)
    columns = [*_PLACE, "batch_size", "engine", "device", "bytes"]
    return _write(f"{MEMORY}/{params.dataset.name}.csv", rows, columns)


def _memory_of(
    name: str, params: Params, dataset: Dataset | EncodedDataset, device: str
) -> list[dict[str, Any]]:
    """The rows of a study; a line for each reason why some are missing."""
    from smallbatch.engines.update_memory import measure_column

    rows: list[dict[str, Any]] = []
    missing: dict[tuple[Engine, str], list[int]] = {}
    for m in params.grid.batch_sizes:
        for engine in _ENGINES:
            try:
                row = measure_column(
                    name, params.studies[name], dataset, batch_size=m, engine=engine, device=device
                )
            except UserError as error:
                missing.setdefault((engine, str(error)), []).append(m)
            else:
                rows += [] if row is None else [row]
    for (engine, reason), sizes in missing.items():
        say(
            f"{params.dataset.name}/{name}",
            f"its memory is not counted by {engine} at m = {', '.join(map(str, sizes))}: {reason}",
        )
    return rows


def _write(name: str, rows: list[dict[str, Any]], columns: list[str]) -> Path:
    import pandas as pd

    from smallbatch.analysis.evaluation import write_table

    path = MEASUREMENTS / name
    private.refuse_links_of_others(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pd.DataFrame(rows, columns=columns), path)
    return path
