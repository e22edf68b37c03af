"""A column's result files and the finished runs they are assembled from, written atomically.

Declared outputs appear once, whole, at the end. A run that finished before its column did is kept
as a record in the work directory, keyed by the run's hash, so an interrupted or widened column
trains only what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.training.engines import Engine
from smallbatch.training.protocol import PROTOCOL, Run

if TYPE_CHECKING:
    from smallbatch.training.loop import RunResult

# The modules that determine each engine's numbers; a record made by other code is trained again.
_LOOP = (
    "data/sampling.py",
    "models",
    "training/loop.py",
    "training/protocol.py",
    "training/resident.py",
)
CODE: dict[Engine, tuple[str, ...]] = {
    "loop": _LOOP,
    "stacked": (
        *_LOOP,
        "training/choice.py",
        "training/lane_convs.py",
        "training/lane_inputs.py",
        "training/lane_step.py",
        "training/lane_vmap.py",
        "training/lanes.py",
        "training/stacked.py",
        "training/stacked_layers.py",
        "training/stacked_models.py",
        "training/stacked_norms.py",
        "training/triton_convs.py",
        "training/triton_inputs.py",
        "training/triton_kernels.py",
        "training/triton_norms.py",
        "training/triton_tail.py",
    ),
}


@dataclass(frozen=True)
class Timing:
    """When a run started (ISO 8601, UTC), how long it took (seconds) and its training images."""

    started: str
    seconds: float
    images: int

    def as_json(self) -> dict[str, Any]:
        """The run's entry of `timing.json`."""
        speed = self.images / self.seconds if self.seconds else None
        return {"started": self.started, "seconds": self.seconds, "images_per_second": speed}


@contextmanager
def one_writer(work: Path, directory: Path) -> Generator[None, None, None]:
    """Hold the right to write a column; whoever else wants it waits and says for whom.

    The lock ends with its process, however that ends.
    """
    work.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
    with (work / f"{name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            print(f"{directory}: waiting for process {holder}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@cache
def code_digest(engine: Engine) -> str:
    """Hash of the sources that determine a run's numbers under an engine."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in CODE[engine]:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def save_record(directory: Path, result: RunResult, timing: Timing, made_by: str) -> None:
    """Keep one finished or diverged run; ``made_by`` names the code and versions it depends on."""
    from safetensors.torch import save

    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / "weights.safetensors.part"
    weights.write_bytes(save(result.weights))
    record = {**vars(result), "weights": None, "timing": asdict(timing), "made_by": made_by}
    part = directory / "result.json.part"
    part.write_text(json.dumps(record))
    weights.replace(directory / "weights.safetensors")
    part.replace(directory / "result.json")  # last: its presence says that the record is whole


def load_record(directory: Path, made_by: str) -> tuple[RunResult, Timing] | None:
    """A kept run, or None where there is none, it is damaged, or other code made it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from smallbatch.training.loop import RunResult

    try:
        record = json.loads((directory / "result.json").read_text())
        if record.pop("made_by") != made_by:
            return None
        timing = Timing(**record.pop("timing"))
        record["weights"] = load_file(directory / "weights.safetensors")
        return RunResult(**record), timing
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError):
        return None


def write_column(
    directory: Path,
    *,
    dataset: Mapping[str, Any],
    study: str,
    updates: int,
    results: Iterable[tuple[Run, RunResult]],
    timing: Mapping[str, Any],
) -> None:
    """Write a column's four files as one directory, which is never there half-written.

    Args:
        directory: `models/<dataset>/<study>/m<m>`; replaced where it exists.
        dataset: the prepared data set's meta: name, fingerprint, classes, shape, mean and std.
        study: the study's name.
        updates: planned for every run of the column.
        results: every run of the column; written in order of BN batch size, base learning rate
            and seed.
        timing: content of `timing.json`, the only file in which the clock or machine shows.
    """
    import pandas as pd
    from safetensors.torch import save

    ordered = sorted(results, key=lambda pair: _order(pair[0]))
    first = ordered[0][0]
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    rows = [
        {"run": run.hash, "study": study, "batch_size": run.batch_size, "base_lr": run.base_lr,
         "seed": run.seed, **row, "outcome": result.outcome}
        for run, result in ordered for row in result.rows
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(part / "history.parquet", index=False)
    weights = {
        f"{run.hash}/{name}": value
        for run, result in ordered
        for name, value in result.weights.items()
    }
    (part / "weights.safetensors").write_bytes(save(weights))
    runs = {
        "protocol": PROTOCOL,
        "dataset": dict(dataset),
        "study": study,
        "batch_size": first.batch_size,
        "settings": recorded_settings(first),
        "runs": [_run_entry(run, result, updates) for run, result in ordered],
    }
    (part / "runs.json").write_text(_json(runs))
    (part / "timing.json").write_text(_json(timing))
    shutil.rmtree(directory, ignore_errors=True)
    part.replace(directory)


def recorded_settings(run: Run) -> dict[str, Any]:
    """What the runs of a column share, as `runs.json` records it: not their place in the grid."""
    settings = run.settings.model_dump(mode="json", exclude={"base_lrs", "base_lr"})
    settings["base_lr_from"] = run.settings.best_of
    if run.settings.bn_batch_sizes:
        settings["bn_batch_size"] = None
    return settings


def _order(run: Run) -> tuple[int, float, int]:
    return run.settings.bn_batch_size or 0, run.base_lr, run.seed


def _run_entry(run: Run, result: RunResult, updates: int) -> dict[str, Any]:
    return {
        "run": run.hash,
        "base_lr": run.base_lr,
        "lr": run.lr,
        "seed": run.seed,
        "bn_batch_size": run.settings.bn_batch_size,
        "outcome": result.outcome,
        "diverged_at": result.diverged_at,
        "updates": updates,
        "parameters": result.parameters,
        "final": {key: _finite_or_none(value) for key, value in result.final.items()},
    }


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
