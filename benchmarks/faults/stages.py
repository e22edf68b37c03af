"""What is killed: the stages of a tiny pipeline, each with a twin that nobody touches."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import processes

PARAMS = """
dataset: {{name: digits, source: digits, subset: 160, test_subset: 60}}
grid: {{studies: [plain, bn], batch_sizes: [8], base_lrs: [2^-9, 2^-7, 2^6], seeds: 2}}
studies:
  plain: {{model: resnet8, norm: none, epochs: {epochs}, weight_decay: 0.0001, augment: true}}
  bn: {{model: resnet8, norm: batch, epochs: {epochs}, weight_decay: 0.0001}}
compute: {{device: cpu, engine: {engine}, workers: 2, checkpoint_seconds: {interval}}}
"""
INTERVAL = 0.2
"""Seconds between checkpoints in the campaign."""
EPOCHS = {"loop": 4, "stacked": 8}
STUDIES = ("plain", "bn")
COLUMN = ("history.parquet", "weights.safetensors", "runs.json")
METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr", "updates")


@dataclass(frozen=True)
class Stage:
    """One command of the pipeline.

    Attributes:
        name: in the table.
        words: of the command line.
        outputs: what is compared, as globs below the folder.
        engine: of its training.
        tracked: whether it writes to MLflow.
        before: commands whose outputs it needs.
    """

    name: str
    words: tuple[str, ...]
    outputs: tuple[str, ...]
    engine: str = "loop"
    tracked: bool = False
    before: tuple[tuple[str, ...], ...] = ()


def _train(engine: str, study: str, tracked: bool = False) -> Stage:
    label = f"train {engine}{', with MLflow' if tracked else ''}"
    outputs = tuple(f"models/digits/{study}/m8/{name}" for name in COLUMN)
    words = ("train", study, "8")
    return Stage(label, words, outputs, engine, tracked, before=(("prepare",),))


_TRAINED = (("prepare",), *(("train", study, "8") for study in STUDIES))
STAGES: tuple[Stage, ...] = (
    *(_train(engine, study) for engine in ("loop", "stacked") for study in STUDIES),
    _train("stacked", "bn", tracked=True),
    Stage("prepare", ("prepare",), ("data/prepared/digits/*",)),
    Stage("evaluate", ("evaluate",), ("reports/evaluation/*",), before=_TRAINED),
    Stage(
        "report",
        ("report",),
        ("reports/report.html", "reports/figures/*", "reports/tables/*"),
        before=(*_TRAINED, ("evaluate",)),
    ),
    Stage("sync", ("sync",), (), tracked=True, before=_TRAINED),
)


def command(words: tuple[str, ...], tracked: bool) -> Callable[[], None]:
    """The command, to be run in a fork; without tracking unless that is what is tested."""

    def action() -> None:
        from smallbatch import tracking
        from smallbatch.cli import main

        if not tracked:
            tracking.LiveMirror = _NoMirror
        main(list(words), standalone_mode=True)

    return action


class _NoMirror:
    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@dataclass(frozen=True)
class Twin:
    """A stage's folder before it runs, its outputs after it ran untouched, and how long it took."""

    prepared: Path
    outputs: dict[str, bytes]
    seconds: float


def make_twin(stage: Stage, folder: Path) -> Twin:
    """Run a stage undisturbed.

    Raises:
        RuntimeError: it fails.
    """
    prepared = folder / "prepared"
    prepared.mkdir(parents=True)
    (prepared / "params.yaml").write_text(
        PARAMS.format(engine=stage.engine, epochs=EPOCHS[stage.engine], interval=INTERVAL)
    )
    for words in stage.before:
        run(prepared, words, tracked=False)
    shutil.rmtree(prepared / ".smallbatch", ignore_errors=True)
    work = folder / "run"
    shutil.copytree(prepared, work)
    started = time.monotonic()
    run(work, stage.words, stage.tracked)
    seconds = time.monotonic() - started
    return Twin(prepared, outputs(stage, work), seconds)


def run(folder: Path, words: tuple[str, ...], tracked: bool) -> None:
    """Run a command to its end.

    Raises:
        RuntimeError: it fails.
    """
    code = processes.end(processes.start(folder, command(words, tracked)))
    if code:
        tail = (folder / "log").read_text()[-2000:]
        raise RuntimeError(f"{' '.join(words)} in {folder} ended with {code}:\n{tail}")


def outputs(stage: Stage, folder: Path) -> dict[str, bytes]:
    """The stage's outputs by name, those alone that do not depend on the clock."""
    found = [path for pattern in stage.outputs for path in folder.glob(pattern) if path.is_file()]
    timed = ("timing.json", "report.html", "environment.csv", "timing.csv", "speed.csv")
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in found if path.name not in timed
    }


def points(folder: Path, database: Path | str | None = None) -> dict[str, int]:
    """What MLflow's database lacks of the result files, and what it holds twice.

    Args:
        folder: with the result files.
        database: an sqlite file, by default `mlflow.db` in the folder, or SQLAlchemy's URI.
    """
    import pandas as pd
    import sqlalchemy

    expected: Counter[tuple[str, str, str, int, float]] = Counter()
    names: set[tuple[str, str]] = set()
    for path in folder.glob("models/**/history.parquet"):
        history = pd.read_parquet(path)
        study = f"digits/{path.parts[-3]}"
        names |= {(study, run) for run in history["run"]}
        long = history.melt(["run", "epoch"], list(METRICS), "key", "value").astype(
            {"value": float}
        )
        long = long[(long["value"] - long["value"]) == 0]  # finite
        rows: Any = zip(long["run"], long["key"], long["epoch"], long["value"], strict=True)
        expected.update((study, run, key, int(epoch), value) for run, key, epoch, value in rows)
    database = database or folder / "mlflow.db"
    uri = f"sqlite:///{database}" if isinstance(database, Path) else database
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        found = Counter(map(tuple, connection.execute(sqlalchemy.text(_POINTS)).fetchall()))
        runs = Counter(map(tuple, connection.execute(sqlalchemy.text(_RUNS)).fetchall()))
    engine.dispose()
    return {
        "runs_lost": len(names - runs.keys()),
        "runs_doubled": sum(n - 1 for n in runs.values()) + len(runs.keys() - names),
        "points_lost": sum((expected - found).values()),
        "points_doubled": sum(n - 1 for n in Counter(key[:4] for key in found.elements()).values()),
    }


_JOINED = """
    from runs r join tags t on t.run_uuid = r.run_uuid and t.key = 'smallbatch.run'
    join experiments e on e.experiment_id = r.experiment_id and r.lifecycle_stage = 'active'
"""
_RUNS = f"select e.name, t.value {_JOINED}"
_POINTS = f"""
    select e.name, t.value, m.key, m.step, m.value {_JOINED}
    join metrics m on m.run_uuid = r.run_uuid
"""
