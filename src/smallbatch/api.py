"""The package from Python: runs trained, result files as data frames, and what they speak for.

Everything is read from the result files; no evaluation is needed. A folder is that of a project,
whose ``models/`` are read, or else its single runs; or any folder that holds result files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd

from smallbatch.analysis.cells import MAIN_FRACTION, STUDY_KEYS, summarise_cells
from smallbatch.analysis.frames import Results, load_results, on_bn_axis, on_lr_axis
from smallbatch.analysis.generalisation import best_by_study, best_cells
from smallbatch.analysis.stability import stable_ranges
from smallbatch.errors import Stopped as Stopped
from smallbatch.errors import UserError as UserError
from smallbatch.records.columns import read_column

if TYPE_CHECKING:
    import os

    from smallbatch.report.answer import Sure

MODELS, SINGLE_RUNS = "models", ".smallbatch/runs"


@dataclass(frozen=True)
class Best:
    """What one study speaks for, as `smallbatch answer` says it.

    Attributes:
        dataset, study: Their names.
        batch_size, base_lr, lr: m, η̃ and η = m·η̃, under AdamW η twice; None if there is no
            answer.
        not_distinguishable: The other m that may be the best; none if they were not compared.
        worse: The m than which another is better.
        sure: "clear", "open" (others may be as good) or "undecided" (nothing was compared).
        title: Batch size and learning rate, or that there is no answer.
        sentences: How sure that is, the accuracy first.
    """

    dataset: str
    study: str
    batch_size: int | None
    base_lr: float | None
    lr: float | None
    not_distinguishable: tuple[int, ...]
    worse: tuple[int, ...]
    sure: Sure
    title: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        """The answer as text."""
        return f"{self.dataset}/{self.study}: {self.title}. {' '.join(self.sentences)}"


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        outcome: "finished" or "diverged", which is a result and no error.
        test_accuracy, train_accuracy: Of the final weights, in 0..1; None if it diverged.
        batch_size, base_lr, lr, seed: m, η̃ (under AdamW η), η, and the seed.
        updates: The planned number of updates.
        diverged_at: The update at which it diverged, counted from 1; else None.
        remark: What limits its accuracy; empty if nothing does.
        run: The hash that identifies it, in MLflow the tag ``smallbatch.run``.
        folder: Its result files, with the weights.
    """

    outcome: str
    test_accuracy: float | None
    train_accuracy: float | None
    batch_size: int
    base_lr: float
    lr: float
    seed: int
    updates: int
    diverged_at: int | None
    remark: str
    run: str
    folder: Path

    @cached_property
    def history(self) -> pd.DataFrame:
        """A row for each epoch: losses, accuracies in 0..1, the learning rate."""
        return read_column(self.folder).history

    @cached_property
    def mlflow_run_id(self) -> str | None:
        """The id of its run in MLflow, which is asked now; None if it is not there.

        Raises:
            UserError: MLFLOW_TRACKING_URI cannot be used, or its server does not answer.
        """
        from smallbatch.tracking.store import open_store, plain_errors
        from smallbatch.tracking.uri import TrackingUri

        uri = TrackingUri.parse()
        with plain_errors(uri):
            client = open_store(uri).client
            experiments = [it.experiment_id for it in client.search_experiments()]
            found = client.search_runs(experiments, f"tags.`smallbatch.run` = '{self.run}'")
        return str(found[0].info.run_id) if found else None


def load_runs(
    project_or_models: str | os.PathLike[str] = ".", *, everything: bool = False
) -> pd.DataFrame:
    """Read the runs.

    Args:
        project_or_models: The folder of a project or of result files.
        everything: Columns, too, that the project's params.yaml no longer names.

    Returns:
        A row per run, with the columns that docs/python.md describes.

    Raises:
        UserError: There is nothing to read, or a file is damaged.
    """
    return _results(project_or_models, everything=everything).runs


def load_history(
    project_or_models: str | os.PathLike[str] = ".", *, everything: bool = False
) -> pd.DataFrame:
    """Read the runs epoch by epoch: a row per run and epoch; see :func:`load_runs`."""
    return _results(project_or_models, everything=everything).history


def load_cells(
    project_or_models: str | os.PathLike[str] = ".", *, everything: bool = False
) -> pd.DataFrame:
    """Read the runs cell by cell: a row per study, m and η̃, over its seeds; see `load_runs`.

    Where ``optimizer`` is adamw, ``base_lr`` is η, as ``lr`` is for all.
    """
    return summarise_cells(load_runs(project_or_models, everything=everything))


def best(
    project_or_models: str | os.PathLike[str] = ".", *, everything: bool = False
) -> list[Best]:
    """Which batch size and learning rate each study speaks for; see :func:`load_runs`.

    Returns:
        An answer per study whose grid is m × η̃, in the order of their names.
    """
    from smallbatch.report.study_words import study_card

    runs = load_runs(project_or_models, everything=everything)
    found: list[Best] = []
    for _, own in runs[~on_bn_axis(runs)].groupby(STUDY_KEYS):
        cells = summarise_cells(own)
        chosen = best_cells(cells)
        card = study_card(own, cells, chosen, best_by_study(chosen))
        lr = None
        if card.batch_size is not None and card.base_lr is not None:
            lr = card.base_lr if on_lr_axis(own) else card.batch_size * card.base_lr
        found.append(
            Best(
                dataset=card.dataset, study=card.study, batch_size=card.batch_size,
                base_lr=card.base_lr, lr=lr, not_distinguishable=card.not_distinguishable,
                worse=card.worse, sure=card.sure, title=card.title, sentences=card.lines,
            )
        )  # fmt: skip
    return found


def stable_range(
    project_or_models: str | os.PathLike[str] = ".",
    *,
    fraction: float = MAIN_FRACTION,
    everything: bool = False,
) -> pd.DataFrame:
    """The lowest and highest η̃ (AdamW: η) that train reliably, for each study and m.

    See `load_runs`; ``lower_lr`` and ``upper_lr`` are η for all.

    Args:
        project_or_models: The folder of a project or of result files.
        fraction: How far a reliable cell is from chance (0) to the study's best cell (1).
        everything: Columns, too, that the project's params.yaml no longer names.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction: found {fraction}, allowed: above 0, at most 1")
    cells = load_cells(project_or_models, everything=everything)
    return stable_ranges(cells, [fraction])


def claims(
    project_or_models: str | os.PathLike[str] = ".", *, everything: bool = False
) -> pd.DataFrame:
    """The verdicts on the paper's claims; see :func:`load_runs`.

    Returns:
        A row per claim and data set: ``claim``, ``figure``, ``statement``, ``dataset``, ``scale``,
        ``verdict``, ``effect`` with bounds ``low`` and ``high`` in ``unit``, ``n`` and ``reason``.
    """
    from smallbatch.analysis.measurements import read_memory, read_variances
    from smallbatch.report.claims import judged_record

    models = _models(Path(project_or_models))
    results = _results(project_or_models, everything=everything)
    measured = next(
        (folder for folder in (models.parent / "reports/measurements",
                               models.parent / "measurements") if folder.is_dir()),
        models.parent / "reports/measurements",
    )  # fmt: skip
    measurements = read_variances(measured), read_memory(measured)
    record = judged_record(results.runs, results.history, *measurements)
    rows = [
        {"claim": claim.claim, "figure": claim.figure, "statement": claim.statement,
         **finding.model_dump(include={"dataset", "scale", "verdict", "effect", "low", "high", "n",
                                       "reason"}),
         "unit": claim.unit}
        for claim in record.claims for finding in claim.findings
    ]  # fmt: skip
    order = ["claim", "figure", "statement", "dataset", "scale", "verdict", "effect", "low", "high",
             "unit", "n", "reason"]  # fmt: skip
    return pd.DataFrame(rows, columns=order).astype({"n": "Int64"})


def train(
    *,
    batch_size: int,
    lr: float | None = None,
    base_lr: float | str | None = None,
    dataset: str = "digits",
    model: str = "resnet8",
    norm: str = "none",
    bn_batch_size: int | None = None,
    epochs: int = 20,
    seed: int = 0,
    weight_decay: float = 1e-4,
    warmup: float = 0.0,
    augment: bool = False,
    optimizer: str = "sgd",
    momentum: float | None = None,
    betas: tuple[float, float] | None = None,
    beta2_examples: float | None = None,
    schedule: str = "step",
    pretrained: str | os.PathLike[str] | None = None,
    freeze: str | None = None,
    device: str = "auto",
    cluster: str | None = None,
    micro_batch: int | str = "auto",
    time_limit: str | float | None = None,
    params: str | os.PathLike[str] = "params.yaml",
    progress: bool = True,
) -> TrainedRun:
    """Train one run as `smallbatch run` does, in a process of its own, and log it to MLflow.

    The same call again finds the run that is kept, and what was interrupted goes on where it was.

    Args:
        batch_size: m, examples per update.
        lr: η, the learning rate of the mean gradient; or give ``base_lr``.
        base_lr: η̃ = η/m, a number or such as ``"2^-6"``; not with adamw, which takes ``lr``.
        dataset: A built-in data set, or the one of ``params``.
        model: One of the paper's, or any timm model.
        norm: ``none``, ``batch``, ``batch_conv``, ``ghost`` or ``group``.
        bn_batch_size: The sub-batch of ghost batch norm.
        epochs: Passes over the training images.
        seed: Of the weights and the order of the images.
        weight_decay: Of the weights.
        warmup: The fraction of training in which the learning rate rises.
        augment: Random crops and flips.
        optimizer: ``sgd``, ``momentum``, ``nesterov`` or ``adamw``.
        momentum: μ of momentum and nesterov; 0.9 by default.
        betas: Of adamw; 0.9 and 0.999 by default.
        beta2_examples: In place of adamw's β₂: examples after which a squared gradient counts half.
        schedule: ``step``, ``cosine`` or ``constant``.
        pretrained: A file of weights to start from, or ``timm`` for those that timm has.
        freeze: ``head only`` trains only the head of such a model.
        device: ``auto``, ``cpu`` or ``cuda``.
        cluster: Who trains it: ``none``, ``ray`` or ``slurm``; by default as ``params`` says.
        micro_batch: Examples of a batch that are computed at a time; ``auto``: as many as fit.
        time_limit: Seconds, or such as ``"3h30m"``, after which it stops with all progress kept.
        params: The params file with the cluster, and with ``dataset`` if that is not built-in.
        progress: Whether to show the epochs on stderr.

    Raises:
        UserError: A setting is wrong, or the machine lacks memory or disk.
        Stopped: The time limit passed.
        RuntimeError: The training failed.
    """
    from smallbatch.pipeline.child import is_text, run_in_child

    if (lr is None) == (base_lr is None):
        found = "neither" if lr is None else "both"
        raise UserError(f"lr and base_lr: found {found}, allowed: one of the two")
    options = {
        "batch-size": batch_size, "lr": lr, "base-lr": base_lr, "dataset": dataset, "model": model,
        "norm": norm, "bn-batch-size": bn_batch_size, "epochs": epochs, "seed": seed,
        "weight-decay": weight_decay, "warmup": warmup, "optimizer": optimizer,
        "momentum": momentum, "beta2-examples": beta2_examples, "schedule": schedule,
        "pretrained": pretrained, "freeze": freeze, "device": device, "cluster": cluster,
        "micro-batch": micro_batch, "time-limit": time_limit, "params": params,
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    if odd := [word for word in words if "\0" in word or not is_text(word)]:
        raise UserError(f"{odd[0].partition('=')[0]}: found {odd[0].partition('=')[2]!r}, no text")
    words += [f"--betas={betas[0]}", str(betas[1])] if betas is not None else []
    words += ["--augment" if augment else "--no-augment", "--json"]
    result: dict[str, Any] = json.loads(run_in_child(["run", *words], progress=progress))
    final = cast("dict[str, float | None]", result["final"])
    return TrainedRun(
        outcome=result["outcome"],
        test_accuracy=final.get("test_accuracy"),
        train_accuracy=final.get("train_accuracy"),
        batch_size=int(batch_size),
        base_lr=result["base_lr"],
        lr=result["lr"],
        seed=result["seed"],
        updates=result["updates"],
        diverged_at=result["diverged_at"],
        remark=result["remark"],
        run=result["run"],
        folder=Path(result["folder"]).absolute(),
    )


def _models(folder: Path) -> Path:
    """Where the result files of a folder are."""
    for name in (MODELS, SINGLE_RUNS):
        if (folder / name).is_dir():
            return folder / name
    return folder


def _results(folder: str | os.PathLike[str], *, everything: bool) -> Results:
    from smallbatch.config.params import load_params
    from smallbatch.pipeline.experiments import is_named

    models = _models(Path(folder))
    file = models.parent / "params.yaml"
    if everything or models.name != MODELS or not file.exists():
        return load_results(models)
    return load_results(models, is_named(load_params(file)))
