"""What a stage was made from is the same at its end as at its start, or the stage fails.

DVC looks at the params and files that a stage depends on when the stage has ended, and takes its
outputs for theirs. If one of them was edited meanwhile, the outputs are those of what it was
before; a stage that fails is not recorded, and runs again.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch import durable
from smallbatch.config.params import load_params
from smallbatch.errors import UserError
from smallbatch.pipeline import code
from smallbatch.pipeline.experiments import (
    EVALUATION,
    MEASUREMENTS,
    PREPARED,
    column_folder,
)
from smallbatch.pipeline.measurements import measured_studies

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from smallbatch.config.params import Params
    from smallbatch.config.study import StudyConfig

_ABSENT = object()
_TABLES = ("runs.json", "history.parquet", "timing.json")
_NAMED = 3  # changed inputs in a message; there may be a thousand


@contextmanager
def held(
    before: Mapping[str, object], now: Callable[[], Mapping[str, object]]
) -> Generator[None, None, None]:
    """Look at a stage's inputs again when it has ended, and under DVC also at its code.

    Args:
        before: The inputs by name, as the stage uses them.
        now: Reads them again.

    Raises:
        UserError: One of them has changed.
    """
    # Such as train@resnet8-8; with the path of its dvc.yaml before a colon where that is elsewhere.
    stage = os.environ.get("DVC_STAGE", "").rpartition(":")[2].partition("@")[0]
    modules = code.listed(stage) if stage else {}
    before = {**before, **modules}
    yield
    after = {**now(), **code.now(modules)}
    names = [*before, *(name for name in after if name not in before)]
    changed = [name for name in names if before.get(name, _ABSENT) != after.get(name, _ABSENT)]
    if changed:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        raise UserError(
            f"{', '.join(changed[:_NAMED])}{more}: changed while this command ran, so its results "
            "are those of before; run it again"
        )


@contextmanager
def held_params(
    file: Path, inputs: Callable[[Params], Mapping[str, object]]
) -> Generator[Params, None, None]:
    """Read a params file, and hold what a stage uses of it; see :func:`held`.

    Args:
        file: The params file.
        inputs: What the stage depends on; the names of settings are completed by the file's.

    Raises:
        UserError: The file is missing or wrong, or what the stage uses has changed at its end.
    """

    def named(params: Params) -> dict[str, object]:
        found = inputs(params).items()
        return {name if "/" in name else f"{file}: {name}": value for name, value in found}

    params = load_params(file)
    with held(named(params), lambda: named(load_params(file))):
        yield params


def prepare_inputs(params: Params) -> dict[str, object]:
    """What `prepare` depends on."""
    return {"dataset": params.dataset}


def train_inputs(params: Params, study: str, batch_size: int) -> dict[str, object]:
    """What training a column depends on: settings, data, and the column that its η̃ comes from."""
    found = _prepared(params)
    if study in params.studies:
        settings = params.studies[study]
        found[f"studies.{study}"] = settings
        found |= _seeds(params, [settings])
        found |= code.of_models([settings])
        if settings.best_of is None:
            found["grid.base_lrs"] = params.base_lrs(study)
        else:
            source = column_folder(params, settings.best_of, batch_size)
            found |= _digests(source / name for name in ("runs.json", "history.parquet"))
    return found


def measure_inputs(params: Params) -> dict[str, object]:
    """What `measure` depends on."""
    studies = {name: params.studies[name] for name in params.running}
    varying = measured_studies(params)  # the variance of updates has seeds, their memory has none
    used = {
        f"studies.{name}": study if name in varying else study.model_copy(update={"seeds": None})
        for name, study in studies.items()
    }
    grid = _seeds(params, varying.values()) | {"grid.batch_sizes": params.grid.batch_sizes}
    grid["compute.device"] = params.compute.device
    return grid | used | code.of_models(studies.values()) | _prepared(params)


def evaluate_inputs(models: Path, file: Path | None) -> dict[str, object]:
    """What `evaluate` depends on: the complete columns, what it reads of them, which are named.

    Args:
        models: The folder of the columns.
        file: The params file that names columns; None: all are evaluated.

    Raises:
        UserError: There is no such folder, or the params file is wrong.
    """
    from smallbatch.records.columns import find_columns

    named: dict[str, object] = {}
    if file is not None:
        params = load_params(file)
        grid = {key: getattr(params.grid, key) for key in ("studies", "dependent", "batch_sizes")}
        named = {f"{file}: dataset.name": params.dataset.name}
        named |= {f"{file}: grid.{key}": value for key, value in grid.items()}
    files = (column / name for column in find_columns(models)[0] for name in _TABLES)
    return {**named, **_digests(files)}


def report_inputs(models: Path) -> dict[str, object]:
    """What `report` depends on: measurements, and tables with the columns that they are of."""
    from smallbatch.records.columns import find_columns

    complete, unfinished = find_columns(models) if models.is_dir() else ([], [])
    columns = (column / name for column in complete for name in _TABLES)
    evaluation = [*EVALUATION.glob("*.parquet"), EVALUATION / "set_aside.json"]
    paths = [*evaluation, *MEASUREMENTS.rglob("*.csv"), *columns]
    return {**_digests(paths), **{f"{column}/": "unfinished" for column in unfinished}}


def _seeds(params: Params, studies: Iterable[StudyConfig]) -> dict[str, object]:
    """The grid's number of seeds, if one of the studies has none of its own."""
    return {"grid.seeds": params.grid.seeds} if any(it.seeds is None for it in studies) else {}


def _prepared(params: Params) -> dict[str, object]:
    """The description of the prepared data, which has the fingerprint of the arrays."""
    return _digests([PREPARED / params.dataset.name / "meta.json"])


def _digests(paths: Iterable[Path]) -> dict[str, object]:
    """SHA-256 by path; what is not there has none."""
    found: dict[str, object] = {}
    for path in paths:
        try:
            found[str(path)] = hashlib.sha256(durable.read(path)).hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            continue
    return found
