"""What MLflow's database holds of the result files, read without MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "updates")


def count(folder: Path, database: Path | str | None = None) -> dict[str, int]:
    """What the database lacks of the result files, what it holds twice, and what out of order.

    Runs are those of the columns too, the parents; a run below no column is counted as lost.

    Args:
        folder: with the result files.
        database: an sqlite file, by default `mlflow.db` in the folder, or SQLAlchemy's URI.
    """
    runs, points = _expected(folder)
    found, parents, logged = _found(database or folder / "mlflow.db")
    run_of = {run_id: run for run_id, run, _ in found}
    moments: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
    values: Counter[tuple[Any, ...]] = Counter()
    for run_id, key, step, value, moment in logged:
        values[(*run_of[run_id], key, step, value)] += 1
        moments.setdefault((run_id, key), []).append((step, moment))
    held = Counter(run_of.values())
    columns = Counter(parents.values())
    wanted = {study for study, _ in runs}
    orphans = sum(parent not in parents for _, _, parent in found)
    once = Counter(key[:4] for key in values.elements())
    return {
        "runs_lost": len(runs - held.keys()) + len(wanted - columns.keys()) + orphans,
        "runs_doubled": _more(held, runs) + _more(columns, wanted),
        "points_lost": sum((points - values).values()),
        "points_doubled": sum(n - 1 for n in once.values()),
        "out_of_order": sum(map(_falls, moments.values())),
    }


def _expected(folder: Path) -> tuple[set[tuple[str, str]], Counter[tuple[Any, ...]]]:
    """(experiment, run) of every run, and (experiment, run, metric, step, value) of every point."""
    import pandas as pd

    runs: set[tuple[str, str]] = set()
    points: Counter[tuple[Any, ...]] = Counter()
    for path in folder.glob("models/**/history.parquet"):
        history = pd.read_parquet(path)
        study = f"digits/{path.parts[-3]}"
        runs |= {(study, run) for run in history["run"]}
        long = history.melt(["run", "epoch"], list(METRICS), "key", "value")
        long = long.astype({"value": float})
        long = long[(long["value"] - long["value"]) == 0]  # finite
        rows: Any = zip(long["run"], long["key"], long["epoch"], long["value"], strict=True)
        points.update((study, run, key, int(epoch), value) for run, key, epoch, value in rows)
    return runs, points


def _found(
    database: Path | str,
) -> tuple[list[tuple[str, tuple[str, str], str]], dict[str, str], Sequence[Any]]:
    """(id, (experiment, run), parent's id); experiments by parent's id; the runs' points."""
    import sqlalchemy

    uri = f"sqlite:///{database}" if isinstance(database, Path) else database
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        runs, parents, points = (
            connection.execute(sqlalchemy.text(query)).fetchall()
            for query in (_RUNS, _PARENTS, _POINTS)
        )
    engine.dispose()
    return [(row[0], (row[1], row[2]), row[3]) for row in runs], dict(map(tuple, parents)), points


def _more(held: Counter[Any], wanted: set[Any]) -> int:
    """Those held twice, and those that nobody made."""
    return sum(n - 1 for n in held.values()) + len(held.keys() - wanted)


def _falls(points: list[tuple[int, int]]) -> int:
    """Steps whose moment is before that of an earlier step."""
    moments = [moment for _, moment in sorted(points)]
    return sum(b < a for a, b in pairwise(moments))


_ACTIVE = """
    from runs r join experiments e
    on e.experiment_id = r.experiment_id and r.lifecycle_stage = 'active'
    {} join tags t on t.run_uuid = r.run_uuid and t.key = 'smallbatch.run'
"""
_RUNS = f"""
    select r.run_uuid, e.name, t.value, p.value {_ACTIVE.format("")}
    left join tags p on p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId'
"""
_PARENTS = f"""
    select r.run_uuid, e.name {_ACTIVE.format("left")}
    join tags c on c.run_uuid = r.run_uuid and c.key = 'smallbatch.column' where t.value is null
"""
_POINTS = f"""
    select r.run_uuid, m.key, m.step, m.value, m.timestamp {_ACTIVE.format("")}
    join metrics m on m.run_uuid = r.run_uuid
"""
