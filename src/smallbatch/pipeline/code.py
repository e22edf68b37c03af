"""Which code decides the output of each stage: listings that the stages of DVC depend on.

An installed package is no file of the project, and most of its modules decide no number. So the
stage `code` lists, for each other stage, the modules that do, with their digests: DVC runs a stage
again when one of its own changed, by an edit or by another version of the package. So do the
project's own modules and pretrained weights, for the stages that build models.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch import durable, modules, private
from smallbatch.config import yaml_file
from smallbatch.config.model_files import file_digest, model_files
from smallbatch.engines.made_by import ENTRY, NO_NUMBERS
from smallbatch.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from smallbatch.config.study import StudyConfig

FOLDER = Path(".smallbatch/code")
# They only say, read and write.
_PLUMBING = ("errors.py", "durable.py", "machine.py", "private.py")
_READING = (*_PLUMBING, "data/__init__.py", "data/scratch.py", "data/split.py")
_ENGINES = tuple(sorted({entry for entries in ENTRY.values() for entry in entries}))
_MEASURED = ("engines/update_variance.py", "engines/update_memory.py")
_OF_MODELS = ("train", "train_dependent", "measure", "advise")
_OWN = "./"  # before a file of the project, in a listing
# What an advice is carried out by; the numbers are those of `train`.
_CARRYING_OUT = (*NO_NUMBERS, "tracking", "execution", "placement", "speed", "engines",
                 "pipeline/single.py")  # fmt: skip
_BEST = ("analysis/cells.py", "analysis/frames.py", "analysis/generalisation.py")


def write() -> list[Path]:
    """Write the listing of every stage; returns their paths."""
    private.refuse_links_of_others(FOLDER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    listings = _listings()
    for path, content in listings.items():
        durable.write(path, content)
    return [*listings]


def kept_stages() -> frozenset[str]:
    """The stages of which `dvc.lock` has it that the present code made their output.

    DVC does not run them again for their code. Of the others it does, or knows nothing.
    """
    now = {str(path): hashlib.md5(content, usedforsecurity=False).hexdigest()
           for path, content in _listings().items()}  # fmt: skip
    kept: set[str] = set()
    try:
        noted = yaml_file.parse(durable.read(Path("dvc.lock")).decode(), "dvc.lock")["stages"]
        for stage, entry in noted.items():
            path = str(FOLDER / stage.partition("@")[0])
            then = {dep["path"]: dep.get("md5") for dep in entry.get("deps", ())}
            if path in now and then.get(path) == now[path]:
                kept.add(stage)
    except (OSError, UserError, LookupError, AttributeError, TypeError, ValueError):
        pass  # there is none, or DVC will say what is wrong with it
    return frozenset(kept)


def _listings() -> dict[Path, bytes]:
    own, listings = _own_files(), dict[Path, bytes]()
    for stage, files in of_stages().items():
        lines = [f"{modules.digest(file)}  {file}\n" for file in files]
        if stage in _OF_MODELS:
            lines += [f"{file_digest(file)}  {_OWN}{file}\n" for file in own]
        listings[FOLDER / stage] = "".join(lines).encode()
    return listings


def of_stages() -> dict[str, list[Path]]:
    """The files that decide each stage's output, relative to the package."""
    # They make a run's hash, which DVC does not know.
    settings = modules.sources("config/params.py", leave_out=_PLUMBING)
    grid = modules.sources("protocol/column.py", leave_out=NO_NUMBERS)
    models = modules.sources("config/model_files.py", leave_out=(*_PLUMBING, "modules.py"))
    train = {*settings, *models, *grid, *modules.sources(*_ENGINES, leave_out=NO_NUMBERS)}
    measured = modules.sources(*_MEASURED, leave_out=NO_NUMBERS)
    found = {
        "prepare": {*modules.sources("data/prepare.py", leave_out=_PLUMBING), *settings},
        "train": train,
        # Its η̃ comes from the best cell of another column.
        "train_dependent": {*train, *modules.sources(*_BEST, leave_out=_READING)},
        "measure": {*settings, *models, *measured},
        "evaluate": modules.sources("analysis/evaluation.py", leave_out=_READING),
        "report": modules.sources("report/page.py", leave_out=_READING),
        "advise": {
            *train,
            *modules.sources("data/prepare.py", leave_out=_PLUMBING),
            *modules.sources("pipeline/advise/advise.py", leave_out=_CARRYING_OUT),
            *modules.sources("report/advice.py", leave_out=_READING),
        },
    }
    return {stage: sorted(files) for stage, files in found.items()}


def listed(stage: str) -> dict[str, object]:
    """The digests of a stage's files by name, as they were when DVC looked; none without DVC."""
    try:
        lines = durable.read(FOLDER / stage).decode().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    split = (line.partition("  ") for line in lines)
    return {
        name if name.startswith(_OWN) else f"smallbatch/{name}": digest for digest, _, name in split
    }


def now(names: dict[str, object]) -> dict[str, object]:
    """The present digests of such files; what is gone has none."""
    found: dict[str, object] = {}
    for name in names:
        own = name.startswith(_OWN)
        path = Path(name) if own else modules.PACKAGE / Path(name).relative_to("smallbatch")
        if path.is_file():
            found[name] = file_digest(path)
    return found


def of_models(studies: Iterable[StudyConfig]) -> dict[str, object]:
    """The digests of the project's files that decide these studies' models, named as `listed`."""
    files = model_files([it.model_dump(include={"model", "pretrained"}) for it in studies])
    return {f"{_OWN}{file}": file_digest(file) for file in files}


def _own_files() -> list[Path]:
    """The files of this project that decide the models of its studies."""
    try:
        params = yaml_file.read(Path("params.yaml"))
        studies = [dict(it) for it in params["studies"].values()]
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):
        return []  # whichever command reads the params says what is wrong with them
    return model_files(studies)
