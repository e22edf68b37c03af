"""A column's result files and the finished runs they are assembled from, written atomically.

Declared outputs appear once, whole, at the end. A run that finished before its column did is kept
as a record in the work directory, keyed by the run's hash, so an interrupted or widened column
trains only what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from smallbatch import durable, private
from smallbatch.config.model_files import code_digest
from smallbatch.config.model_names import own_model
from smallbatch.modules import as_paths, of_project
from smallbatch.protocol.run import PROTOCOL, Run, told
from smallbatch.records import system
from smallbatch.records.fence import OPEN, Fence
from smallbatch.records.schema import (
    CODE,
    Clock,
    ColumnRecord,
    Environment,
    RunRecord,
    StudySettings,
    Timing,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from smallbatch.data.prepared import Meta
    from smallbatch.protocol.outcome import RunResult


NAMES = ("history.parquet", "weights.safetensors", "runs.json", "timing.json", system.NAME)
"""Of a column's files."""


def save_record(
    directory: Path, result: RunResult, clock: Clock, made_by: str, fence: Fence = OPEN
) -> None:
    """Keep one finished or diverged run in a directory named by its hash.

    ``made_by`` names the code and versions that it depends on, ``fence`` the attempt that made it.

    Raises:
        OSError: it cannot be written; nothing of it is left.
        TakenOver: another attempt at its column has taken over.
    """
    record = {**vars(result), "weights": None, "timing": clock.model_dump(), "made_by": made_by}
    path = directory / "record"
    with fence.writing():
        if directory.is_symlink():  # to another run's directory
            directory.unlink()
        private.refuse_links_of_others(directory)
        directory.mkdir(parents=True, exist_ok=True)
        durable.seal(path, result.weights, record, of=directory.name, draft=fence.draft(path))


class Kept(NamedTuple):
    """A finished or diverged run, when it was trained, and what made it."""

    result: RunResult
    clock: Clock
    made_by: str


def load_record(directory: Path, makers: Container[str]) -> Kept | None:
    """A kept run, or None where there is none, it is damaged, or none of `makers` made it.

    None as well, with a line, for another run's record, another user's, or a link.

    Raises:
        OSError: it cannot be read.
    """
    from smallbatch.protocol.outcome import RunResult

    path = directory / "record"
    try:
        weights, record = durable.unseal(private.read_shared(path), of=directory.name)
        if (made_by := record.pop("made_by")) not in makers:
            return None
        clock = Clock(**record.pop("timing"))
        record["weights"] = weights
        return Kept(RunResult(**record), clock, made_by)
    except (private.Untrusted, durable.Misplaced) as error:
        private.say_once(f"{path}: left out: {getattr(error, 'strerror', error)}")
        return None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def maker_of(directory: Path) -> str | None:
    """What made a kept run, from the beginning of its record alone; None where there is none.

    Whether the record is whole is not looked at.
    """
    try:
        with os.fdopen(private.open_shared(directory / "record", os.O_RDONLY), "rb") as file:
            maker = durable.peek(file).get("made_by")
    except (OSError, ValueError):
        return None
    return maker if isinstance(maker, str) else None


def shared_environment(clocks: Mapping[str, Clock]) -> tuple[Environment, dict[str, Clock]]:
    """What the environments of all runs have in common, and clocks with the rest of each."""
    first, *others = (clock.environment for clock in clocks.values())
    shared = {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }
    own = {
        name: clock.model_copy(
            update={"environment": {k: v for k, v in clock.environment.items() if k not in shared}}
        )
        for name, clock in clocks.items()
    }
    return shared, own


def save_timing(path: Path, timing: Timing, fence: Fence = OPEN) -> None:
    """Keep a column's timing beside the records of its runs.

    Raises:
        OSError: it cannot be written.
        TakenOver: another attempt has taken over.
    """
    with fence.writing():
        durable.seal(path, {}, timing.model_dump(), of=path.name, draft=fence.draft(path))


def load_timing(path: Path, clocks: Mapping[str, Clock]) -> Timing | None:
    """A column's kept timing, or None where it is not that of exactly these trainings.

    Args:
        path: where :func:`save_timing` wrote it.
        clocks: those of the column's runs, by hash, as :func:`shared_environment` makes them.

    Raises:
        OSError: it cannot be read.
    """
    try:
        _, content = durable.unseal(private.read_shared(path), of=path.name)
        timing = Timing(**content)
    except (private.Untrusted, durable.Misplaced) as error:
        private.say_once(f"{path}: left out: {getattr(error, 'strerror', error)}")
        return None
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return timing if timing.runs == clocks else None


def write_column(
    directory: Path,
    *,
    dataset: Meta,
    study: str,
    updates: int,
    results: Iterable[tuple[Run, RunResult]],
    timing: Timing,
    system_use: bytes | None = None,
    fence: Fence = OPEN,
) -> None:
    """Write a column's files as one directory, which is never there half-written.

    Args:
        directory: `models/<dataset>/<study>/m<m>`; replaced where it exists.
        dataset: the prepared data set's description.
        study: the study's name.
        updates: planned for every run of the column.
        results: every run of the column; written in order of BN batch size, base learning rate
            and seed.
        timing: content of `timing.json`; in it and in the next alone the clock or machine shows.
        system_use: content of `system.json`; None if there is none.
        fence: of the attempt that made them.

    Raises:
        OSError: they cannot be written; what was there before stays as it is.
        TakenOver: another attempt has taken over; likewise.
    """
    import pandas as pd
    from safetensors.torch import save

    ordered = sorted(results, key=lambda pair: _order(pair[0]))
    first = ordered[0][0]
    rows = [
        {"run": run.hash, "study": study, "batch_size": run.batch_size, "base_lr": run.base_lr,
         "seed": run.seed, **row, "outcome": result.outcome}
        for run, result in ordered for row in result.rows
    ]  # fmt: skip
    history = BytesIO()
    pd.DataFrame(rows).to_parquet(history, index=False)
    weights = save({
        f"{run.hash}/{name}": value
        for run, result in ordered
        for name, value in result.weights.items()
    }, _code(first))  # fmt: skip
    record = ColumnRecord(
        protocol=PROTOCOL,
        dataset=dataset,
        study=study,
        batch_size=first.batch_size,
        settings=recorded_settings(first),
        runs=tuple(_run_record(run, result, updates) for run, result in ordered),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        model_digest=first.model_digest,
    )
    contents = (history.getvalue(), weights, _json(record), _json(timing), system_use)
    named = zip(NAMES, contents, strict=True)
    _replace_folder(directory, {name: data for name, data in named if data is not None}, fence)


def _code(run: Run) -> dict[str, str] | None:
    """The project's modules that a model of the user's own needs, to lie beside its weights.

    They are left out if they have changed since the runs began.
    """
    if (own := own_model(run.settings.model)) is None:
        return None
    files = of_project(own[0], Path.cwd())
    if not files or not run.model_digest.startswith(f"code {code_digest(own[0])}"):
        return None
    return {CODE: json.dumps({it: file.read_text("utf-8") for it, file in as_paths(files).items()})}


def _replace_folder(directory: Path, contents: Mapping[str, bytes], fence: Fence = OPEN) -> None:
    def fill(folder: Path) -> None:
        for name, data in contents.items():
            durable.write(folder / name, data)

    replace_folder(directory, fill, fence)


def replace_folder(directory: Path, fill: Callable[[Path], None], fence: Fence = OPEN) -> None:
    """Put a column's files in place of those that were there, whole or not at all.

    Args:
        directory: `models/<dataset>/<study>/m<m>`.
        fill: Writes the files into the folder that it is given.
        fence: Of the attempt that made them.

    Raises:
        OSError: They cannot be written; what was there before stays as it is.
        TakenOver: Another attempt has taken over; likewise.
    """
    private.refuse_links_of_others(directory)
    # What versions of this package left that had a stage of the same name for all.
    left = [directory.with_name(f"{directory.name}{end}") for end in (".part", ".old.part")]
    for folder in (directory, *left):
        durable.check_replaceable(folder, NAMES)
    stage = fence.stage(directory)
    new, old = stage / "new", stage / "old"
    try:
        with fence.writing():
            stage.mkdir(parents=True)
            fence.check()  # whoever took over before there was this stage cannot have removed it
            new.mkdir()
            fill(new)
            # Both renames have one end in the stage: neither works once that is taken away.
            with suppress(FileNotFoundError):
                directory.replace(old)
            try:
                new.replace(directory)
            except OSError:
                with suppress(FileNotFoundError):
                    old.replace(directory)
                raise
        durable.sync_folder(directory.parent)
    finally:
        with suppress(OSError):
            for folder in (stage, *left):
                durable.discard(folder)


def recorded_settings(run: Run) -> StudySettings:
    """What the runs of a column share, as `runs.json` records it: not their place in the grid."""
    settings = told(run.settings.model_dump(mode="json", exclude={"base_lrs", "base_lr", "lrs"}))
    settings["base_lr_from"] = run.settings.best_of
    if run.settings.bn_batch_sizes:
        settings["bn_batch_size"] = None
    return cast("StudySettings", settings)


def _order(run: Run) -> tuple[int, float, int]:
    return run.settings.bn_batch_size or 0, run.base_lr, run.seed


def _run_record(run: Run, result: RunResult, updates: int) -> RunRecord:
    return RunRecord(
        run=run.hash,
        base_lr=run.base_lr,
        lr=run.lr,
        seed=run.seed,
        bn_batch_size=run.settings.bn_batch_size,
        outcome=result.outcome,
        diverged_at=result.diverged_at,
        updates=updates,
        parameters=result.parameters,
        final={key: _finite_or_none(value) for key, value in result.final.items()},
    )


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


def _json(record: BaseModel) -> bytes:
    value = record.model_dump(mode="json")
    if not value.get("model_digest", True):  # as in the files of before there was one
        del value["model_digest"]
    return f"{json.dumps(value, indent=1, sort_keys=True, allow_nan=False)}\n".encode()
