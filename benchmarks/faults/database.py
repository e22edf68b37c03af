"""What MLflow's database holds of the result files, read without MLflow."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")
FINAL = {
    "train_accuracy": "final_train_accuracy",
    "population_test_accuracy": "population_test_accuracy",
}
SUMMARY = ("runs_diverged",)
"""Of every column; `best_accuracy` and `best_base_lr` are there if a run finished."""
SPEED = ("images_per_second",)
"""Of every column that one attempt trained from its first update to its last."""


def count(folder: Path, database: Path | str | None = None) -> dict[str, int]:
    """What the database lacks of the result files, what it holds twice, and what out of order.

    Runs are those of the columns too, the parents; a run below no column is counted as lost.

    Args:
        folder: with the result files.
        database: an sqlite file, by default `mlflow.db` in the folder, or SQLAlchemy's URI.
    """
    runs, columns, points, summaries = _expected(folder)
    rows, logged = _found(database or folder / "mlflow.db")
    parents = {row.run: (row.experiment, row.of_column) for row in rows if row.name is None}
    run_of = {row.run: (row.experiment, row.name) for row in rows if row.name is not None}
    moments: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    values: Counter[tuple[Any, ...]] = Counter()
    shown: Counter[tuple[str, str]] = Counter()
    for run, key, step, value, moment in logged:
        moments.setdefault((run, key), []).append((step, moment))
        if run in parents:
            shown[parents[run][0], key] += 1
        else:
            values[(*run_of[run], key, step, value)] += 1
    held, of_study = Counter(run_of.values()), Counter(study for study, _ in set(parents.values()))
    orphans = sum(row.parent not in parents for row in rows if row.name is not None)
    steps = Counter((run, key, step) for (run, key), them in moments.items() for step, _ in them)
    return {
        "runs_lost": len(runs - held.keys()) + sum((columns - of_study).values()) + orphans,
        "runs_doubled": _more(held, runs)
        + sum((of_study - columns).values())
        + sum(n - 1 for n in Counter(parents.values()).values()),
        "unended": sum(row.status != "FINISHED" for row in rows),
        "points_lost": sum((points - values).values()) + sum((summaries - shown).values()),
        "points_doubled": sum(n - 1 for n in steps.values()),
        "out_of_order": sum(map(_falls, moments.values())),
    }


def _expected(
    folder: Path,
) -> tuple[set[tuple[str, str]], Counter[str], Counter[tuple[Any, ...]], Counter[tuple[str, str]]]:
    """(experiment, run) of every run; columns by experiment; (experiment, run, metric, step, value)
    of every point of a run; (experiment, metric) of every column's own points.
    """  # noqa: D205
    import pandas as pd

    runs: set[tuple[str, str]] = set()
    columns: Counter[str] = Counter()
    points: Counter[tuple[Any, ...]] = Counter()
    summaries: Counter[tuple[str, str]] = Counter()
    for path in folder.glob("models/**/history.parquet"):
        history = pd.read_parquet(path)
        study = f"digits/{path.parts[-3]}"
        columns[study] += 1
        timing = json.loads((path.parent / "timing.json").read_text())["column"]
        known = [key for key in SPEED if timing.get(key) is not None]
        summaries.update((study, key) for key in (*SUMMARY, *known))
        long = history.melt(["run", "epoch"], list(METRICS), "key", "value")
        found: list[Any] = long[["run", "key", "epoch", "value"]].to_numpy().tolist()
        for run in json.loads((path.parent / "runs.json").read_text())["runs"]:
            name = run["run"]
            runs.add((study, name))
            own = history[history["run"] == name].sort_values("epoch")
            last = own["epoch"].iloc[-1]
            found += [(name, shown, last, run["final"][key]) for key, shown in FINAL.items()]
            if run["outcome"] == "finished":
                reported = own["test_accuracy"].tail(min(max(len(own) // 8, 1), 5))
                found += [(name, "reported_accuracy", last, reported.median())]
        points.update(
            (study, name, key, int(epoch), float(value))
            for name, key, epoch, value in found
            if value is not None and math.isfinite(value)
        )
    return runs, columns, points, summaries


def _found(database: Path | str) -> tuple[Sequence[Any], Sequence[Any]]:
    """Rows (run, experiment, of_column, name, parent, status) of all that is ours, and its points.

    The name is None for a column's own run.
    """
    import sqlalchemy

    uri = f"sqlite:///{database}" if isinstance(database, Path) else database
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        rows, points = (
            connection.execute(sqlalchemy.text(query)).fetchall() for query in (_RUNS, _POINTS)
        )
    engine.dispose()
    return rows, points


def _more(held: Counter[Any], wanted: set[Any]) -> int:
    """Those held twice, and those that nobody made."""
    return sum(n - 1 for n in held.values()) + len(held.keys() - wanted)


def _falls(points: list[tuple[int, int]]) -> int:
    """Steps whose moment is before that of an earlier step."""
    moments = [moment for _, moment in sorted(points)]
    return sum(b < a for a, b in pairwise(moments))


_RUNS = """
    select r.run_uuid as run, e.name as experiment, c.value as of_column, t.value as name,
        p.value as parent, r.status as status
    from runs r join experiments e on e.experiment_id = r.experiment_id
    join tags c on c.run_uuid = r.run_uuid and c.key = 'smallbatch.column'
    left join tags t on t.run_uuid = r.run_uuid and t.key = 'smallbatch.run'
    left join tags p on p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId'
    where r.lifecycle_stage = 'active'
"""
_POINTS = """
    select r.run_uuid, m.key, m.step, m.value, m.timestamp from runs r
    join tags c on c.run_uuid = r.run_uuid and c.key = 'smallbatch.column'
    join metrics m on m.run_uuid = r.run_uuid where r.lifecycle_stage = 'active'
"""
