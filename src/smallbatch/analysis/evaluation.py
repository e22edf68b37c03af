"""The evaluate stage: writes tables of runs, cells and history, and metrics, from result files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from pydantic import ConfigDict, RootModel, TypeAdapter, ValidationError

from smallbatch import durable, private
from smallbatch.analysis.cells import CELLS, STUDY_KEYS, summarise_cells
from smallbatch.analysis.frames import GRID_KEYS, RUNS, load_results, on_bn_axis
from smallbatch.analysis.metrics import study_metrics
from smallbatch.analysis.mixed import mixed_results
from smallbatch.errors import UserError
from smallbatch.records.columns import RUN_KEYS, reported_accuracies
from smallbatch.records.reading import Kind, read_json, read_table
from smallbatch.records.schema import HISTORY
from smallbatch.text import count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ADVICE = "run smallbatch evaluate"
_SET_ASIDE = "set_aside.json"

# Spreadsheets skip blanks and characters without width, and take full-width signs for the others.
_FORMULA = re.compile(
    r"[\t\r\n]|[\s\x00-\x1f\x7f-\x9f\xad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]*"
    r"[=+\-@\uff1d\uff0b\uff0d\uff20\ufe66\ufe62\ufe63\ufe6b]"
)


class _SetAside(RootModel[tuple[str, ...]]):
    """The content of ``set_aside.json``."""

    model_config = ConfigDict(strict=True, frozen=True)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, for printing.

    Attributes:
        out: The folder of the written files.
        n_studies, n_runs, n_diverged: The numbers of studies, runs and diverged runs.
        skipped: Unfinished columns, relative to the models directory.
        set_aside: Columns that were left out, as ``<dataset>/<study>/m<m>``, sorted.
        warnings: A line for each data set and study whose results do not belong together.
    """

    out: Path
    n_studies: int
    n_runs: int
    n_diverged: int
    skipped: tuple[str, ...]
    set_aside: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The result as a few lines of text."""
        counts = (
            f"{count(self.n_runs, 'run')} of {count(self.n_studies, 'study', 'studies')}, "
            f"{self.n_diverged} diverged"
        )
        lines = [f"{self.out}: {counts}"]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} unfinished: {', '.join(self.skipped)}")
        if self.set_aside:
            lines.append(
                f"set aside, not named by params.yaml: {by_study(self.set_aside)}; "
                "`smallbatch evaluate --all` brings them in"
            )
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]


def by_study(names: Sequence[str]) -> str:
    """Write names of columns for reading: ``digits/a m8, m16; digits/b m8``."""
    sizes: dict[str, list[int]] = {}
    for name in names:
        study, _, batch_size = name.rpartition("/m")
        sizes.setdefault(study, []).append(int(batch_size))
    return "; ".join(
        f"{study} {', '.join(f'm{size}' for size in sorted(own))}" for study, own in sizes.items()
    )


def evaluate(
    models_dir: Path = Path("models"),
    out: Path = Path("reports/evaluation"),
    wanted: Callable[[str], bool] = lambda _: True,
    dataset: str | None = None,
) -> Evaluation:
    """Evaluate the complete columns and write the tables.

    Writes ``runs`` and ``cells`` as Parquet and CSV, ``history.parquet``, ``metrics.json``, and
    ``set_aside.json`` with the names of the columns that were left out.

    Args:
        models_dir: The folder of the columns.
        out: The folder for the tables.
        wanted: Whether a column, given as ``<dataset>/<study>/m<m>``, is evaluated; all are, by
            default.
        dataset: The data set that the metrics are of; of all, by default.

    Raises:
        UserError: There is nothing to evaluate, or a file is damaged.
    """
    results = load_results(models_dir, wanted)
    cells = summarise_cells(results.runs)
    private.refuse_links_of_others(out)
    out.mkdir(parents=True, exist_ok=True)
    write_table(results.runs, out / "runs.parquet")
    write_table(results.runs, out / "runs.csv")
    write_table(cells, out / "cells.parquet")
    write_table(cells, out / "cells.csv")
    write_table(results.history, out / "history.parquet")
    metrics = json.dumps(study_metrics(results.runs, dataset), indent=2, allow_nan=False)
    write_text(out / "metrics.json", metrics + "\n")
    write_text(out / _SET_ASIDE, json.dumps(results.set_aside, indent=1) + "\n")
    return Evaluation(
        out=out,
        n_studies=results.runs.groupby(STUDY_KEYS).ngroups,
        n_runs=len(results.runs),
        n_diverged=int(results.runs["outcome"].eq("diverged").sum()),
        skipped=results.skipped,
        set_aside=results.set_aside,
        warnings=tuple(mixed_results(results.runs, cells)),
    )


def read_evaluation(directory: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read the tables of runs, cells and history.

    Raises:
        UserError: A file is missing or damaged, or they are not of one evaluation.
    """
    kinds: dict[str, dict[str, Kind]] = {
        "runs": RUNS,
        "cells": CELLS,
        "history": {"dataset": "text", **HISTORY},
    }
    runs, cells, history = (
        read_table(directory / f"{name}.parquet", kinds[name], _ADVICE) for name in kinds
    )
    for key in ("milestones", "bn_batch_sizes"):
        for text in runs[key].dropna().unique():
            try:
                TypeAdapter(list[float]).validate_json(text)
            except ValidationError:
                found = f"column {key!r}: found {text!r}, allowed: a list of numbers"
                raise UserError(f"{directory}/runs.parquet: damaged, {found}; {_ADVICE}") from None
    own = runs[~on_bn_axis(runs)]
    for name, frame, of, keys in (
        ("cells", cells, own, GRID_KEYS),
        ("history", history, runs, [*RUN_KEYS, *GRID_KEYS]),
    ):
        if _places(frame, keys) != _places(of, keys):
            raise UserError(
                f"{directory / name}.parquet: not of the runs in runs.parquet; {_ADVICE}"
            )
    # The same runs may have been trained again between one evaluation and another.
    for name, frame, of, keys in (
        ("cells", cells, summarise_cells(runs), GRID_KEYS),
        ("history", reported_accuracies(history).reset_index(), runs, RUN_KEYS),
    ):
        if not _agree(frame, of, keys):
            raise UserError(
                f"{directory / name}.parquet: not of one evaluation with runs.parquet; {_ADVICE}"
            )
    return runs, cells, history


def refuse_stale(runs: pd.DataFrame, directory: Path, models_dir: Path) -> None:
    """Refuse an evaluation of other columns, or of other results, than are there now.

    Args:
        runs: Its table of runs.
        directory: Where it lies, for the message.
        models_dir: The folder of the columns.

    Raises:
        UserError: It is not of them, or a file of a column is damaged.
    """
    set_aside = read_set_aside(directory)
    present = load_results(models_dir, lambda name: name not in set_aside)
    if present.set_aside != set_aside or runs_digest(present.runs) != runs_digest(runs):
        raise UserError(
            f"{directory}: not of the columns that are in {models_dir} now; run smallbatch evaluate"
        )


def read_set_aside(directory: Path) -> tuple[str, ...]:
    """The columns that an evaluation left out, as ``<dataset>/<study>/m<m>``, sorted.

    Evaluations of earlier versions left none out, and have no such file.

    Raises:
        UserError: The file is damaged.
    """
    path = directory / _SET_ASIDE
    return read_json(_SetAside, path, _ADVICE).root if path.exists() else ()


def runs_digest(runs: pd.DataFrame) -> str:
    """The SHA-256, in hex, of what a table of runs says, in whatever order and kind of file."""
    # As text all values are exact, and each kind of missing value is empty.
    text = runs.sort_values(RUN_KEYS).to_csv(index=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def read_runs(directory: Path) -> pd.DataFrame:
    """Read the table of runs alone.

    Raises:
        UserError: It is missing or damaged.
    """
    return read_table(directory / "runs.parquet", RUNS, _ADVICE)


def _agree(frame: pd.DataFrame, of: pd.DataFrame, keys: list[str]) -> bool:
    """Whether two tables have the same rows, in any order, as to the columns both have."""
    numbers = of.select_dtypes(["number", "bool"])
    names = [name for name in frame if name in numbers and name not in keys]
    one, other = (
        each.sort_values(keys)[names].to_numpy(dtype=float, na_value=math.nan)
        for each in (frame, of)
    )
    # Other versions of pandas may add in another order.
    return one.shape == other.shape and np.allclose(one, other, 1e-9, 1e-12, equal_nan=True)


def _places(frame: pd.DataFrame, keys: list[str]) -> set[tuple[Any, ...]]:
    return set(frame[keys].drop_duplicates().itertuples(index=False, name=None))


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table, complete or not at all; as CSV or Parquet, by the ending of the name.

    In CSV a text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    content = BytesIO()
    if path.suffix == ".csv":
        _without_formulas(frame).to_csv(content, index=False)
    else:
        frame.to_parquet(content, index=False, write_page_checksum=True)
    durable.write(path, content.getvalue())


def _without_formulas(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are none that a spreadsheet would compute; numbers stay as they are."""

    def plain(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    texts = {name: pd.Series([plain(value) for value in column], column.index, dtype=object)
             for name, column in frame.items()
             if not pd.api.types.is_numeric_dtype(column)}  # fmt: skip
    return frame.assign(**{str(name): text for name, text in texts.items()}).rename(columns=plain)


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    durable.write(path, text.encode())
