"""Which code decides the output of each stage: listings that the stages of DVC depend on.

An installed package is no file of the project, and most of its modules decide no number. So the
stage `code` lists, for each other stage, the modules that do, with their digests: DVC runs a stage
again when one of its own changed, by an edit or by another version of the package.
"""

from __future__ import annotations

from pathlib import Path

from smallbatch import durable, modules, private
from smallbatch.engines.made_by import ENTRY, NO_NUMBERS

FOLDER = Path(".smallbatch/code")
# They only say, read and write.
_PLUMBING = ("errors.py", "durable.py", "machine.py", "private.py")
_READING = (*_PLUMBING, "data/__init__.py", "data/scratch.py", "data/split.py")
_ENGINES = tuple(sorted({entry for entries in ENTRY.values() for entry in entries}))
_BEST = ("analysis/cells.py", "analysis/frames.py", "analysis/generalisation.py")


def write() -> list[Path]:
    """Write the listing of every stage; returns their paths."""
    private.refuse_links_of_others(FOLDER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    stages = of_stages()
    for stage, files in stages.items():
        lines = [f"{modules.digest(file)}  {file}\n" for file in files]
        durable.write(FOLDER / stage, "".join(lines).encode())
    return [FOLDER / stage for stage in stages]


def of_stages() -> dict[str, list[Path]]:
    """The files that decide each stage's output, relative to the package."""
    # They make a run's hash, which DVC does not know.
    settings = modules.sources("config/params.py", leave_out=_PLUMBING)
    grid = modules.sources("protocol/column.py", leave_out=NO_NUMBERS)
    train = {*settings, *grid, *modules.sources(*_ENGINES, leave_out=NO_NUMBERS)}
    measured = modules.sources("engines/update_variance.py", leave_out=NO_NUMBERS)
    found = {
        "prepare": {*modules.sources("data/prepare.py", leave_out=_PLUMBING), *settings},
        "train": train,
        # Its η̃ comes from the best cell of another column.
        "train_dependent": {*train, *modules.sources(*_BEST, leave_out=_READING)},
        "measure": {*settings, *measured},
        "evaluate": modules.sources("analysis/evaluation.py", leave_out=_READING),
        "report": modules.sources("report/page.py", leave_out=_READING),
    }
    return {stage: sorted(files) for stage, files in found.items()}


def listed(stage: str) -> dict[str, object]:
    """The digests of a stage's files by name, as they were when DVC looked; none without DVC."""
    try:
        lines = durable.read(FOLDER / stage).decode().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    return {
        f"smallbatch/{name}": digest for digest, _, name in (it.partition("  ") for it in lines)
    }


def now(names: dict[str, object]) -> dict[str, object]:
    """The present digests of such files; what is gone has none."""
    files = {name: Path(name).relative_to("smallbatch") for name in names}
    return {
        name: modules.digest(file)
        for name, file in files.items()
        if (modules.PACKAGE / file).is_file()
    }
