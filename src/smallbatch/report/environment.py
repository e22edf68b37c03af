"""Where and how long columns were trained, read from their timing files."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from smallbatch.analysis.frames import column_name
from smallbatch.records.columns import find_columns, read_record, read_timing
from smallbatch.records.hardware import DIFFERS, Trained, sentence, trained_by
from smallbatch.report.labels import DASH, duration, listed
from smallbatch.report.tables import Table

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_LABELS = {
    "device": "Device",
    "engine": "Engine",
    "workers": "Workers",
    "cpu": "CPU",
    "cores": "CPU cores",
    "gpu": "GPU",
    "hardware": "Instruction sets",
    "kernels": "Kernels",
    "platform": "Platform",
    "python": "Python",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "smallbatch": "smallbatch",
    "git_commit": "Project (git commit)",
}
_SEVERAL = "several: not that of all runs"


def read_timings(models_dir: Path, set_aside: Collection[str] = ()) -> pd.DataFrame:
    """Read the timing file of every complete column.

    Args:
        models_dir: The folder of the columns.
        set_aside: Columns to leave out, as ``<dataset>/<study>/m<m>``.

    Returns:
        One row per column: dataset, study, batch_size, started (ISO 8601), seconds,
        images_per_second, peak_memory_bytes, ``environment``, which describes the machine as JSON
        text, and ``trained_by``, likewise what trained its runs, as
        :func:`~records.hardware.trained_by` has it. Columns without a timing file are left out;
        what is not known is NaN.

    Raises:
        UserError: A timing file is damaged, or that of another column.
    """
    rows: list[dict[str, Any]] = []
    complete = find_columns(models_dir)[0] if models_dir.is_dir() else []
    for directory in complete:
        record = read_record(directory)
        if column_name(record) in set_aside:
            continue
        whole = read_timing(directory, record)
        timing, environment = whole.column, dict(whole.environment)
        if not timing:
            continue
        if environment.pop("git_dirty", False) and environment.get("git_commit"):
            environment["git_commit"] = f"{environment['git_commit']} with uncommitted changes"
        environment |= {key: timing.get(key) for key in ("device", "engine", "workers")}
        of_runs = {key for run in whole.runs.values() for key in run.environment} - {"git_dirty"}
        environment |= dict.fromkeys(of_runs, _SEVERAL)
        rows.append(
            {
                "dataset": record.dataset.name,
                "study": record.study,
                "batch_size": record.batch_size,
                "started": timing.get("started"),
                "seconds": timing.get("seconds", math.nan),
                "images_per_second": timing.get("images_per_second", math.nan),
                "peak_memory_bytes": timing.get("peak_memory_bytes", math.nan),
                "environment": json.dumps(environment, sort_keys=True),
                "trained_by": json.dumps(trained_by(whole), ensure_ascii=False),
            }
        )
    return pd.DataFrame(rows)


def environment_table(timings: pd.DataFrame) -> Table | None:
    """The environments that occur: a row per property, a column per environment."""
    if timings.empty:
        return None
    groups = [group for _, group in timings.groupby("environment", sort=False)]
    environments = [json.loads(group["environment"].iloc[0]) for group in groups]
    known = [key for key in _LABELS if any(key in each for each in environments)]
    others = sorted({key for each in environments for key in each} - set(_LABELS))
    rows = [
        [_LABELS.get(key, key), *(_text(each.get(key)) for each in environments)]
        for key in [*known, *others]
    ]
    rows += [
        ["Columns with a timing file", *(str(len(group)) for group in groups)],
        ["First started (UTC)", *(_text(group["started"].min()) for group in groups)],
        ["Last started (UTC)", *(_text(group["started"].max()) for group in groups)],
        ["Time in training, summed", *(_summed(group["seconds"]) for group in groups)],
    ]
    one = len(groups) == 1
    headers = ["value"] if one else [f"environment {index + 1}" for index in range(len(groups))]
    caption = "What the columns (all runs of one study at one batch size) were trained on."
    return Table(caption, ("item", *headers), rows, prose=True)


def mixed_hardware(timings: pd.DataFrame) -> list[str]:
    """Sentences on the columns, and the studies, that several kinds of hardware trained."""
    if timings.empty:
        return []
    found: list[str] = []
    for (dataset, study), columns in timings.groupby(["dataset", "study"], sort=False):
        sizes: dict[str, list[str]] = {}
        ordered = columns.sort_values("batch_size")
        for m, text in zip(ordered["batch_size"], ordered["trained_by"], strict=True):
            trained = [Trained(*it) for it in json.loads(text)]
            if len(trained) > 1:
                found.append(f"{dataset}/{study}, m = {m}: {sentence(trained)}.")
            if names := sorted({it.hardware for it in trained}):
                sizes.setdefault(" and ".join(names), []).append(str(m))
        if len(sizes) > 1:
            split = (f"m = {listed(some)} on {names}" for names, some in sizes.items())
            found.append(f"{dataset}/{study}: {'; '.join(split)}.")
    return [*found, f"{DIFFERS[0].upper()}{DIFFERS[1:]}."] if found else []


def _summed(seconds: pd.Series[float]) -> str:
    """A duration, and of how many columns it is where that of others is not known."""
    known = seconds.dropna()
    if known.empty:
        return DASH
    of = "" if len(known) == len(seconds) else f" ({len(known)} of {len(seconds)} columns)"
    return f"{duration(float(known.sum()))}{of}"


def _text(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
