"""Finds the project that a folder belongs to."""

from __future__ import annotations

from pathlib import Path

_EXPERIMENTS = (".dvc", "tmp", "exps")


def project_folder(folder: Path) -> Path:
    """The folder itself, or, if it is in the copy of an experiment of DVC, the project copied.

    `dvc exp run --temp` and `--queue` run in ``PROJECT/.dvc/tmp/exps/[standalone/]tmpXXXX``, and
    remove it in the end, with everything in it that is no output of a stage.

    Args:
        folder: An absolute path.
    """
    for index in range(len(folder.parts) - len(_EXPERIMENTS)):
        if folder.parts[index : index + len(_EXPERIMENTS)] == _EXPERIMENTS:
            return Path(*folder.parts[:index])
    return folder
