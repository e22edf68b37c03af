"""Trains one run outside the pipeline."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.config.dataset import BUILT_IN
from smallbatch.config.params import (
    DatasetConfig,
    Params,
    load_params,
    parse_compute,
    parse_dataset,
    parse_study,
)
from smallbatch.durable import read, write
from smallbatch.errors import UserError
from smallbatch.pipeline.tracked import train_and_track
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from smallbatch.config.params import ComputeConfig
    from smallbatch.config.study import StudyConfig
    from smallbatch.data.encoded import EncodedDataset
    from smallbatch.data.prepared import Dataset, Labels
    from smallbatch.execution.watch import Watch
    from smallbatch.protocol.column import Column
    from smallbatch.tracking import LiveMirror

DEFAULT_PARAMS = Path("params.yaml")
SINGLE_RUNS = Path(".smallbatch/runs")  # not in models/, which has the pipeline's outputs
SINGLE_RUNS_DATA = Path(".smallbatch/data")


@dataclass(frozen=True)
class SingleRun:
    """A run that has ended.

    Attributes:
        folder: Its result files.
        record: Its entry in ``runs.json``.
        remark: What limits its accuracy; empty if nothing does.
    """

    folder: Path
    record: dict[str, Any]
    remark: str = ""

    def __str__(self) -> str:
        """A line with the accuracies, or that it diverged; and one more with the remark."""
        run = self.record
        if run["outcome"] == "diverged":
            return f"diverged at update {run['diverged_at']} of {run['updates']}: {self.folder}"
        final = run["final"]
        line = (
            f"test accuracy {final['test_accuracy']:.4f}, train accuracy "
            f"{final['train_accuracy']:.4f} after {count(run['updates'], 'update')}: {self.folder}"
        )
        return "\n".join(filter(None, [line, self.remark]))


def single_run(
    params_file: Path,
    dataset: str,
    settings: dict[str, Any],
    *,
    batch_size: int,
    base_lr: float,
    seed: int,
    device: str,
    cluster: str | None = None,
    micro_batch: int | str = "auto",
    time_limit: float | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> SingleRun:
    """Train one run outside the pipeline.

    Args:
        params_file: The params file, for its data set and its cluster.
        dataset: A built-in data set, or the name of the params file's.
        settings: The study's settings, as written in `params.yaml`.
        batch_size: m.
        base_lr: η̃; under AdamW η.
        seed: The seed of weights and stream.
        device: ``auto``, ``cpu`` or ``cuda``.
        cluster: ``none``, ``ray`` or ``slurm``; None: as the params file has it.
        micro_batch: Examples of a batch that are computed at a time; ``auto``: as many as fit.
        time_limit: Seconds after which to stop, with all progress kept.
        say: Takes a line for the user: which images are used, where that is not plain.

    Raises:
        UserError: A setting is wrong, or the data set is unknown.
        Stopped: By a signal or before the time limit.
    """
    from smallbatch.config.model_names import validate_model
    from smallbatch.data.encoded import load_any

    params = _params(params_file)
    compute = _compute(params, device, cluster, micro_batch)
    study = parse_study(settings, "run")
    validate_model(
        study.model, study.norm, batch_size=batch_size, bn_batch_size=study.bn_batch_size
    )
    name = f"{study.model}-{study.norm}".lower().replace(":", "-").lstrip("_")
    if study.optimizer != "sgd":
        name += f"-{study.optimizer}"

    @cache
    def prepared() -> Path:
        return prepared_for_itself(_dataset_config(params, params_file, dataset, say), say)

    @cache
    def plan() -> Column:
        data = load_any(prepared())
        return plan_on(data, name, study, batch_size=batch_size, base_lrs=[base_lr], seeds=[seed])

    def folder(column: Column) -> Path:
        return SINGLE_RUNS / dataset / name / column.runs[0].hash

    def elsewhere(mirror: LiveMirror, watch: Watch) -> str:
        from smallbatch.pipeline.cluster.elsewhere import run_elsewhere

        return run_elsewhere(plan(), compute, prepared(), folder(plan()), mirror, watch)

    column_dir = train_and_track(
        plan,
        compute,
        folder,
        stage=None,
        time_limit=time_limit,
        elsewhere=None if compute.cluster == "none" else elsewhere,
    )
    run = json.loads((column_dir / "runs.json").read_text())["runs"][0]
    diverged = run["outcome"] == "diverged"
    remark = "" if diverged else learned_nothing(run["final"], plan().dataset.test_labels)
    return SingleRun(column_dir, run, remark)


def plan_on(
    data: Dataset | EncodedDataset,
    name: str,
    study: StudyConfig,
    *,
    batch_size: int,
    base_lrs: Sequence[float],
    seeds: Sequence[int],
) -> Column:
    """Make a column, with the weights that it begins from.

    Raises:
        UserError: It does not suit the data, or there are no such weights.
    """
    from smallbatch.config.model_files import FROM_TIMM
    from smallbatch.protocol.column import plan_column

    if study.pretrained == FROM_TIMM:
        from smallbatch.models.pretrained import fetch

        fetch(study.model)
    return plan_column(name, study, data, batch_size=batch_size, base_lrs=base_lrs, seeds=seeds)


def learned_nothing(final: dict[str, Any], labels: Labels) -> str:
    """A line, if the test accuracy is what naming the most frequent class gives.

    Args:
        final: The run's final measures; accuracies in 0..1.
        labels: Of the test set (N,).
    """
    import numpy as np

    from smallbatch.analysis.sampling import is_guess

    chance = float(np.unique(labels, return_counts=True)[1].max()) / len(labels)
    if not is_guess(final["test_accuracy"], len(labels), chance):
        return ""
    population = final.get("population_test_accuracy")
    if population is not None and not is_guess(population, len(labels), chance):
        return (
            f"ended no better than always naming the most frequent class ({100 * chance:.2g} %), "
            "but by batch norm's running statistics "
            "alone: with statistics recomputed over the training set it reaches "
            f"{100 * population:.3g} %; train longer or take a smaller batch size"
        )
    return (
        f"ended no better than always naming the most frequent class ({100 * chance:.2g} %): "
        "nothing learned; try another learning rate or longer training"
    )


def prepared_for_itself(config: DatasetConfig, say: Callable[[str], object]) -> Path:
    """Prepare a data set for single runs, apart from the pipeline's.

    That is done once per configuration, and again when the source's files or what decodes them have
    changed. The note of both names the arrays that it is of: an interruption between the two, or
    another process beside this one, leaves a note that does not count.
    """
    from smallbatch.data.decoder import decoder_digest
    from smallbatch.data.prepare import prepare
    from smallbatch.data.sources import label_file, source_files
    from smallbatch.pipeline.image_progress import ImageProgress

    if config.path is None and config.source in ("cifar10", "cifar100"):
        config = config.model_copy(update={"path": f"data/raw/{config.source}"})
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
    folder = SINGLE_RUNS_DATA / digest
    directory, note = folder / "prepared" / config.name, folder / "listing"
    files, decoder = source_files(config, Path("data")), decoder_digest()
    # Looked at before the images are read: if they change meanwhile, the next run sees it.
    labels = label_file(config, Path("data"))
    listed = listing_of(files, labels)
    if directory.exists():
        if listed is None:
            say(f"{files}: not there; the run uses the images as they were prepared in {directory}")
            return directory
        noted = _noted(note)
        if noted == [listed, decoder, _fingerprint(directory)]:
            return directory
        if noted[:1] == [listed]:
            say(f"{directory}: made by other code or libraries, or cut short, thus prepared again")
        else:
            say(f"{files}: changed since {directory} was prepared from it, which is done again")
    with ImageProgress(config.name) as progress:
        meta = prepare(config, folder, say=say, told=progress.told)
    found = listing_of(files, labels)
    if listed in (None, found):
        write(note, json.dumps([found, decoder, meta.fingerprint]).encode())
    return directory


def _noted(note: Path) -> list[object]:
    """What a note says: listing, decoder, fingerprint; nothing where it is missing or damaged."""
    try:
        content: object = json.loads(read(note))
    except (FileNotFoundError, ValueError):
        return []
    return content if isinstance(content, list) else []  # pyright: ignore[reportUnknownVariableType]


def _fingerprint(directory: Path) -> str | None:
    from smallbatch.data.prepared import load_meta

    try:
        return load_meta(directory).fingerprint
    except UserError:  # to be prepared again
        return None


def listing_of(files: Path | None, labels: Path | None) -> str | None:
    """The digest of a source's files, and of its file of labels; None: they are not there."""
    from smallbatch.data.files import listing

    if files is None:
        return "none"
    paths = [files] if labels is None else [files, labels]
    return " ".join(map(listing, paths)) if all(path.exists() for path in paths) else None


def _params(params_file: Path) -> Params | None:
    default = params_file == DEFAULT_PARAMS
    return None if default and not params_file.exists() else load_params(params_file)


def _compute(
    params: Params | None, device: str, cluster: str | None, micro_batch: int | str
) -> ComputeConfig:
    """Where a run is trained; of a params file the cluster alone counts, with its settings."""
    found: dict[str, Any] = {}
    if params is not None:
        settings = {"cluster", "ray", "slurm"}
        found = params.compute.model_dump(include=settings, exclude_unset=True)
    if cluster is not None:
        found["cluster"] = cluster
    return parse_compute({**found, "device": device, "micro_batch": micro_batch}, "run")


def _dataset_config(
    params: Params | None, params_file: Path, dataset: str, say: Callable[[str], object]
) -> DatasetConfig:
    if params is not None and params.dataset.name == dataset:
        if dataset in BUILT_IN:
            own = params.dataset.model_dump(exclude_defaults=True, exclude={"name"})
            settings = ", ".join(f"{key}: {value}" for key, value in own.items())
            say(f"--dataset {dataset}: that of {params_file}, {{{settings}}}")
        return params.dataset
    if dataset in BUILT_IN:
        return parse_dataset({"name": dataset, "source": dataset}, "run")
    own = () if params is None or params.dataset.name in BUILT_IN else (params.dataset.name,)
    raise UserError(f"--dataset: found {dataset!r}, allowed: {', '.join((*BUILT_IN, *own))}")
