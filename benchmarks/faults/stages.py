"""What is killed: the stages of a tiny pipeline, each with a twin that nobody touches."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
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
SAFE = ".smallbatch/safe"
"""Where a stage's processes note when their work was last safe."""
EPOCHS = {"loop": 6, "stacked": 16}
STUDIES = ("plain", "bn")
COLUMN = ("history.parquet", "weights.safetensors", "runs.json")


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
        from smallbatch.cli.main import main

        if not tracked:
            tracking.LiveMirror = _NoMirror
        _note_what_is_safe(Path(SAFE).absolute())
        main(list(words), standalone_mode=True)

    return action


def with_uri(uri: str, action: Callable[[], None]) -> Callable[[], None]:
    """The action, with that tracking URI."""

    def tracked() -> None:
        os.environ["MLFLOW_TRACKING_URI"] = uri
        action()

    return tracked


class _NoMirror:
    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _note_what_is_safe(folder: Path) -> None:
    """Touch a file named as the process whenever it has nothing to lose.

    That is when a chunk's turn comes, and after each checkpoint and record.
    """
    from smallbatch import durable
    from smallbatch.records.checkpoints import Checkpoints

    def touching(function: Callable[..., None]) -> Callable[..., None]:
        def then_touch(*arguments: Any, **options: Any) -> None:
            function(*arguments, **options)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / str(os.getpid())).touch()

        return then_touch

    durable.seal = touching(durable.seal)
    Checkpoints.start_clock = touching(Checkpoints.start_clock)


def unsaved(folder: Path, workers: Sequence[int]) -> float | None:
    """Seconds of work that the worker with the most of it would lose now."""
    files = [folder / SAFE / str(worker) for worker in workers]
    moments = [file.stat().st_mtime for file in files if file.exists()]
    return time.time() - min(moments) if moments else None


@dataclass(frozen=True)
class Twin:
    """A stage that nobody touches.

    Attributes:
        prepared: its folder before it runs.
        outputs: after it ran.
        files: every file of its folder after that.
        seconds: that it took.
    """

    prepared: Path
    outputs: dict[str, bytes]
    files: set[str]
    seconds: float


def make_twin(stage: Stage, scratch: Path) -> Twin:
    """Run a stage undisturbed.

    Raises:
        RuntimeError: it fails.
    """
    prepared, work = _prepared(stage, scratch), scratch / "twin"
    shutil.copytree(prepared, work)
    started = time.monotonic()
    run(work, stage.words, stage.tracked)
    seconds = time.monotonic() - started
    twin = Twin(prepared, outputs(stage, work), files(work), seconds)
    shutil.rmtree(work)
    return twin


def _prepared(stage: Stage, scratch: Path) -> Path:
    """The folder that a stage begins with; stages that need the same commands share it."""
    folder = scratch / "; ".join([stage.engine, *map(" ".join, stage.before)])
    if folder.exists():
        return folder
    folder.mkdir()
    (folder / "params.yaml").write_text(
        PARAMS.format(engine=stage.engine, epochs=EPOCHS[stage.engine], interval=INTERVAL)
    )
    for words in stage.before:
        run(folder, words, tracked=False)
    shutil.rmtree(folder / ".smallbatch", ignore_errors=True)
    return folder


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


def files(folder: Path) -> set[str]:
    """Names of all files, but for logs, tracking and the work of trainings that is to be kept."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    return {str(path) for path in found if not _is_apart(path)}


def _is_apart(path: Path) -> bool:
    if path.parts[0] == ".smallbatch":
        return not path.name.endswith((".part", ".checkpoint"))
    return path.name == "log" or path.parts[0].startswith(("mlflow.db", "mlartifacts"))
