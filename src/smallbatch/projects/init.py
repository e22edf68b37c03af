"""Lays out a project: params, pipeline and what git and DVC need, none of it over another file."""

from __future__ import annotations

import subprocess
from pathlib import Path

from smallbatch import durable, private
from smallbatch.errors import UserError

LAYOUT = Path(__file__).parent / "layout"
"""The pipeline and the files beside it: in the repository, links to its own."""
PARAMS = "params.yaml"


def lay_out(folder: Path, params: str) -> list[str]:
    """Make a folder a project, and a git repository where it is in none.

    What is there with the same content stays, and so do the files of a DVC that is there.

    Args:
        folder: The folder, which is made if it is missing.
        params: The text of its params.yaml.

    Returns:
        The names of the files that were written, relative to the folder.

    Raises:
        UserError: Another file is there in place of one of them, or git ignores the folder; nothing
            was written. Or git is missing.
    """
    wanted = _files(params, with_dvc=not (folder / ".dvc").exists())
    found = {name: _content(folder / name) for name in wanted}
    others = [name for name, content in wanted.items() if found[name] not in (None, content)]
    if others:
        raise UserError(
            f"{folder}: found {', '.join(others)} with other content, which stays as it is; "
            "allowed: a folder without them, such as a new one: smallbatch init DIR"
        )
    private.refuse_links_of_others(*(folder / name for name in wanted))
    folder.mkdir(parents=True, exist_ok=True)
    _ensure_git(folder)
    _refuse_ignored(folder)
    new = [name for name in wanted if found[name] is None]
    for name in new:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        durable.write(folder / name, wanted[name])
    return new


def _files(params: str, *, with_dvc: bool) -> dict[str, bytes]:
    """The content of a project's files by name.

    Args:
        params: The text of its params.yaml.
        with_dvc: Also those that `dvc init` would make.
    """
    # None has its own name here, as DVC would take it for a pipeline of the repository.
    places = {"pipeline.yaml": "dvc.yaml", "gitignore": ".gitignore"}
    if with_dvc:
        places |= {"dvcignore": ".dvcignore", "dvc_config": ".dvc/config",
                   "dvc_gitignore": ".dvc/.gitignore"}  # fmt: skip
    plots = sorted(path.name for path in (LAYOUT / "plots").iterdir())
    places |= {f"plots/{name}": f".dvc/plots/{name}" for name in plots}
    files = {place: (LAYOUT / name).read_bytes() for name, place in places.items()}
    return {PARAMS: params.encode(), **files}


def _content(path: Path) -> bytes | None:
    """What a file holds; None: there is none."""
    try:
        return durable.read(path)
    except FileNotFoundError:
        return None
    except OSError:  # a folder, or what may not be read: not what would be written
        return b""


def _ensure_git(folder: Path) -> None:
    """Make a git repository, unless the folder is in one: DVC needs it."""
    try:
        known = subprocess.run(
            ["git", "rev-parse", "--is-inside-work-tree"], cwd=folder, capture_output=True,
            check=False,
        )  # fmt: skip
        if known.returncode != 0:
            subprocess.run(
                ["git", "init", "--quiet"], cwd=folder, capture_output=True, text=True, check=True
            )
    except FileNotFoundError:
        raise UserError("git: found none on PATH, which DVC needs; install it") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"git init in {folder}: {error.stderr.strip()}") from None


def _refuse_ignored(folder: Path) -> None:
    """Refuse a folder that a repository around it ignores: DVC takes no pipeline there.

    Raises:
        UserError: It is one.
    """
    ignored = subprocess.run(
        ["git", "check-ignore", "--quiet", "dvc.yaml"], cwd=folder, capture_output=True, check=False
    )
    if ignored.returncode == 0:
        raise UserError(
            f"{folder}: a .gitignore of the git repository around it ignores dvc.yaml there, which "
            "DVC then refuses; allowed: a folder that git does not ignore"
        )
