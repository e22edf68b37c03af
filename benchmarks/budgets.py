"""Equal epochs, equal updates and equal time on several machines: one figure and one table.

`smallbatch report` has equal time for the machine that trained the columns. Here the same runs are
priced by the speeds of other machines and of a run alone, as measured by benchmarks.

    PYTHONPATH=src:. python -m benchmarks.budgets results/budgets

reads ``models/`` and ``rates.json`` in the folder, and writes ``budgets.csv`` and a figure for each
family as SVG and PNG there. ``rates.json`` is a list of ``{"name", "of", "source",
"images_per_second": {m: rate}}``, where ``of`` are the families that the speeds are of. Between two
m whose speeds were measured, a speed is linear in log m and log rate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from smallbatch.analysis.budgets import compare_budgets
from smallbatch.analysis.evaluation import write_table
from smallbatch.analysis.families import families
from smallbatch.analysis.frames import load_results
from smallbatch.errors import UserError
from smallbatch.report.budgets import KIND, NAMES, budget_kind, budget_rows
from smallbatch.report.figures import Figure, Gallery, plain_name


def between(known: dict[int, float], batch_sizes: list[int]) -> dict[int, float]:
    """The speeds at these m; none beyond the smallest and the largest m that was measured."""
    if not known:
        return {}
    measured = sorted(known)
    inside = [m for m in batch_sizes if measured[0] <= m <= measured[-1]]
    logs = np.interp(np.log(inside), np.log(measured), np.log([known[m] for m in measured]))
    return dict(zip(inside, np.exp(logs).tolist(), strict=True))


def priced(runs: pd.DataFrame, rates: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows of `compare_budgets` with their frame: both budgets, then time by each machine."""
    parts: list[pd.DataFrame] = []
    for family in families(runs):
        free = compare_budgets(family, {})
        parts.append(free.assign(frame=[NAMES[it] for it in free["budget"]]))
        for machine in rates:
            if family.name in machine["of"]:
                known = {int(m): float(v) for m, v in machine["images_per_second"].items()}
                found = compare_budgets(family, between(known, list(family.epochs)))
                own = found[found["budget"] == "seconds"]
                parts.append(own.assign(frame=f"equal time: {machine['name']}"))
    if not parts:
        raise UserError("no studies that differ in their epochs alone")
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame, folder: Path) -> None:
    """A figure for each family."""
    frames = table["frame"].drop_duplicates().tolist()
    rows = [row for _, own in table.groupby("frame") for row in budget_rows(own)]
    gallery = Gallery(folder, {KIND: budget_kind(frames)}, {KIND: rows})
    for (dataset, family), _ in table.groupby(["dataset", "family"]):
        name = plain_name(str(dataset), str(family))
        of = {"dataset": dataset, "family": family}
        gallery.add(Figure(name, KIND, "", "", {KIND: (KIND, of)}))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Write the table and the figures of FOLDER."""
    rates = json.loads((folder / "rates.json").read_text(encoding="utf-8"))
    table = priced(load_results(folder / "models").runs, rates)
    write_table(table, folder / "budgets.csv")
    draw(table, folder)


if __name__ == "__main__":
    main()
