"""What was run: the settings of one study, read off all of its runs.

Columns that were trained at different times may differ in any of them. A row then says so, with the
batch sizes of each value; it never gives the first run's value for all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.analysis.frames import ADAMW, on_lr_axis
from smallbatch.analysis.sampling import CELL
from smallbatch.protocol.crops import SCALE
from smallbatch.records.columns import reported_epochs
from smallbatch.report.images import SEEN
from smallbatch.report.labels import listed, power_of_two
from smallbatch.report.tables import Table, run_counts
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable

_NORMS = {
    "none": "none",
    "batch": "batch norm",
    "batch_conv": "batch norm after convolutions",
    "ghost": "ghost batch norm",
    "group": "group norm",
}
_OPTIMISERS = {
    "sgd": "plain SGD",
    "momentum": "SGD with momentum",
    "nesterov": "SGD with Nesterov's momentum",
    ADAMW: "AdamW",
}
_SPLITS = {"n_train": "training", "n_validation": "validation", "n_test": "test"}


def settings_table(runs: pd.DataFrame) -> Table:
    """The settings of one study: data, model, schedule, grid.

    Args:
        runs: All runs of the study, as `load_results` makes them; with the columns of `with_images`
            the table says what became of encoded images.
    """
    runs = runs.assign(**{key: None for key in SEEN if key not in runs})
    data = ("dataset", "classes", "scale", "short_side", "crop_ratio", "height", "width")
    optimiser = (
        "optimizer", "momentum", "betas", "beta2_examples", "eps", "weight_decay",
        "schedule", "milestones", "lr_decay", "warmup",
    )  # fmt: skip
    batch_sizes = sorted(runs["batch_size"].unique())
    rows = [
        ["Data", _of_all(runs, data, _data)],
        ["Examples", _of_all(runs, tuple(_SPLITS), _examples)],
        ["Model", _of_all(runs, ("model", "parameters"), _model)],
        ["Normalisation", _normalisation(runs)],
        ["Augmentation", _of_all(runs, ("augment", "short_side"), _augmentation)],
        ["Budget", _budget(runs)],
        ["Reported accuracy", reported_rule(runs)],
        ["Optimiser", _of_all(runs, optimiser, _optimiser)],
        ["Precision", _of_all(runs, ("precision",), lambda row: str(row["precision"]))],
        *_parts(runs),
        ["Batch sizes", ", ".join(str(value) for value in batch_sizes)],
        ["Learning rates η" if on_lr_axis(runs) else "Base learning rates", _base_lrs(runs)],
        ["Seeds per cell", _seed_counts(runs)],
        ["Runs (diverged)", run_counts(runs)],
    ]
    return Table("What was run.", ("item", "value"), rows, prose=True)


def setting(runs: pd.DataFrame) -> str:
    """What one study is, in a line: model, normalisation, optimiser if not SGD, budget."""
    model = _of_all(runs, ("model",), lambda row: str(row["model"]))
    norm = _normalisation(runs)
    budget = _budget(runs).replace(" for every run", "")
    parts = [model, "no norm" if norm == _NORMS["none"] else norm]
    if runs["optimizer"].ne("sgd").any():
        parts.append(_of_all(runs, ("optimizer", "momentum"), _named))
    return ", ".join([*parts, budget])


def reported_rule(runs: pd.DataFrame) -> str:
    """How the reported accuracy of these runs was read: over which of their planned epochs.

    Where runs have different numbers of epochs, as with equal updates, each comes with its batch
    sizes: "after the last of 2 epochs (m = 2); median of the last 2 of 16 epochs (m = 16)".
    """
    return _by_value(runs, ("epochs",), lambda row: _last_epochs(row["epochs"]))


def _last_epochs(epochs: int) -> str:
    last = reported_epochs(epochs)
    if epochs == 1:
        return "after the only epoch"
    if last == 1:
        return f"after the last of {epochs} epochs" if epochs > 1 else "after its only epoch"
    return f"median of the last {last} of {epochs} epochs"


def _of_all(
    runs: pd.DataFrame, columns: tuple[str, ...], text: Callable[[dict[Any, Any]], str]
) -> str:
    """What holds for all runs; where they differ, each value with its batch sizes."""
    found = _by_value(runs, columns, text)
    return found if found == text(runs.iloc[0].to_dict()) else f"differs: {found}"


def _by_value(
    runs: pd.DataFrame, columns: tuple[str, ...], text: Callable[[dict[Any, Any]], str]
) -> str:
    sizes: dict[str, set[int]] = {}
    for row in runs[["batch_size", *columns]].drop_duplicates().to_dict("records"):
        sizes.setdefault(text(row), set()).add(int(row["batch_size"]))
    if len(sizes) == 1:
        return next(iter(sizes))
    ordered = sorted(sizes.items(), key=lambda item: sorted(item[1]))
    return "; ".join(
        f"{value} (m = {', '.join(map(str, sorted(those)))})" for value, those in ordered
    )


def _data(row: dict[Any, Any]) -> str:
    scale = f", scale {row['scale']}" if isinstance(row["scale"], str) else ""
    return f"{row['dataset']}, {row['classes']} classes{scale}{_images(row)}"


def _images(row: dict[Any, Any]) -> str:
    """What the model sees of images that are kept encoded; nothing of those kept as pixels."""
    if pd.isna(row["short_side"]):
        return ""
    crops = f"crops of {row['height']}×{row['width']}"
    kept = f", {crops} of images kept with a short side of up to {row['short_side']:.0f}"
    if pd.isna(row["crop_ratio"]):
        return kept
    return f"{kept}, as timm states them for the model (crop ratio {row['crop_ratio']:.3g})"


def _examples(row: dict[Any, Any]) -> str:
    known = [
        f"{row[key]} {name}" for key, name in _SPLITS.items() if pd.notna(row[key]) and row[key] > 0
    ]
    return listed(known) or "not recorded"


def _model(row: dict[Any, Any]) -> str:
    number = row["parameters"]
    return f"{row['model']}, {number:,} parameters" if pd.notna(number) else str(row["model"])


def _normalisation(runs: pd.DataFrame) -> str:
    """The norm; a study's several BN batch sizes are its grid, and no difference."""
    on_axis = runs["bn_batch_sizes"].notna()
    if not on_axis.all():
        return _of_all(runs, ("norm", "bn_batch_size"), _norm)
    sizes = sorted(runs["bn_batch_size"].dropna().astype(int).unique())
    norms = _of_all(runs, ("norm",), lambda row: _NORMS.get(str(row["norm"]), str(row["norm"])))
    return f"{norms} over {', '.join(map(str, sizes))} examples"


def _norm(row: dict[Any, Any]) -> str:
    name = _NORMS.get(str(row["norm"]), str(row["norm"]))
    size = row["bn_batch_size"]
    return f"{name} over {size:.0f} examples" if pd.notna(size) else name


def _augmentation(row: dict[Any, Any]) -> str:
    if not row["augment"]:
        return "none"
    least, most = (f"{100 * part:g}" for part in SCALE)
    of = "" if pd.isna(row["short_side"]) else f" of {least} to {most} % of the area"
    return f"random crop{of}, random flip"


def _parts(runs: pd.DataFrame) -> list[list[str]]:
    """A row where batches were computed in parts, as they did not fit into memory."""
    if runs["micro_batch"].isna().all():
        return []

    def text(row: dict[Any, Any]) -> str:
        size = row["micro_batch"]
        return "whole" if pd.isna(size) else f"in parts of {count(int(size), 'example')}"

    return [["Batches computed", _by_value(runs, ("micro_batch",), text)]]


def _optimiser(row: dict[Any, Any]) -> str:
    name = row["optimizer"]
    parts = [_named(row)]
    if name == ADAMW:
        beta1, beta2 = json.loads(row["betas"])
        half = row["beta2_examples"]
        squares = f"β₂ = {beta2:g}" if pd.isna(half) else f"β₂ such that {half:g} examples halve"
        parts += [f"β₁ = {beta1:g}", squares, f"ε = {row['eps']:g}"]
    elif name != "sgd":
        parts.append(f"one example moves η̃/(1 − μ) = {1 / (1 - row['momentum']):.3g}·η̃ in all")
    decay = "decoupled weight decay" if name == ADAMW else "weight decay"
    return ", ".join([*parts, f"{decay} {row['weight_decay']:g}", _schedule(row)])


def _named(row: dict[Any, Any]) -> str:
    """The optimiser's name, and with it μ."""
    name = _OPTIMISERS.get(row["optimizer"], str(row["optimizer"]))
    return name if pd.isna(row["momentum"]) else f"{name} (μ = {row['momentum']:g})"


def _schedule(row: dict[Any, Any]) -> str:
    decays = listed([f"{100 * float(share):g} %" for share in json.loads(row["milestones"])])
    steps = f"η × {row['lr_decay']:g} at {decays} of the updates"
    schedule = {"step": steps if decays else "constant η", "cosine": "cosine schedule"}.get(
        row["schedule"], f"{row['schedule']} η"
    )
    warmup = f", warm-up over the first {100 * row['warmup']:g} %" if row["warmup"] else ""
    return schedule + warmup


def _budget(runs: pd.DataFrame) -> str:
    """The epochs of every run, or the updates if these are what all runs were to have in common."""
    by_epochs = runs["budget"].eq("epochs")
    epochs = _from_to(runs["epochs"], "epoch")
    if by_epochs.all():
        one = runs["epochs"].nunique() == 1
        return f"{epochs} for every run" if one else f"differs: {epochs}"
    updates = _from_to(runs["updates"], "update")
    if by_epochs.any():
        return f"differs: equal epochs and equal updates ({epochs}, {updates})"
    return f"{updates} for every run ({epochs})"


def _from_to(values: pd.Series[int], thing: str) -> str:
    least, most = int(values.min()), int(values.max())
    return count(least, thing) if least == most else f"{least} to {count(most, thing)}"


def _base_lrs(runs: pd.DataFrame) -> str:
    tried = ", ".join(power_of_two(value) for value in sorted(runs["base_lr"].unique()))
    grids = {frozenset(column) for _, column in runs.groupby("batch_size")["base_lr"]}
    return tried if len(grids) == 1 else f"{tried}; not each at every m"


def _seed_counts(runs: pd.DataFrame) -> str:
    counts = sorted(runs.groupby(CELL, dropna=False).size().unique())
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
