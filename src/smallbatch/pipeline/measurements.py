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

    A study that cannot be counted is left out, and a line says so.

    Returns:
        The path of the table, with a row per study, batch size and engine.

    Raises:
        UserError: The device that ``compute.device`` names does not exist.
    """
    from smallbatch.engines.update_memory import measure_study
    from smallbatch.placement.placement import resolve_device

    device = resolve_device(params.compute.device)
    rows: list[dict[str, Any]] = []
    for name in params.running:
        try:
            rows += measure_study(
                name,
                params.studies[name],
                dataset.meta,
                batch_sizes=params.grid.batch_sizes,
                device=device,
            )
        except UserError as error:
            say(f"{params.dataset.name}/{name}", f"its memory is not counted: {error}")
    columns = [*_PLACE, "batch_size", "engine", "device", "bytes"]
    return _write(f"{params.dataset.name}-memory.csv", rows, columns)


def _write(name: str, rows: list[dict[str, Any]], columns: list[str]) -> Path:
    import pandas as pd

    from smallbatch.analysis.evaluation import write_table

    path = MEASUREMENTS / name
    private.refuse_links_of_others(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pd.DataFrame(rows, columns=columns), path)
    return path
