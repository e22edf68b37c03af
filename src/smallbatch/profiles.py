"""Complete replacements for params.yaml, in `profiles/` beside it."""

from __future__ import annotations

import difflib
from pathlib import Path

from smallbatch import durable
from smallbatch.errors import UserError

FOLDER = Path("profiles")


def summaries() -> dict[str, str]:
    """Name → first comment line of every profile."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for path in sorted(FOLDER.glob("*.yaml"))
    }


def read(name: str) -> str:
    """Text of a profile.

    Raises:
        UserError: there is none of that name.
    """
    names = list(summaries())
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        allowed = ", ".join(names) or f"none, as {FOLDER}/ is not in this folder"
        raise UserError(f"profile: found {name!r}, allowed: {allowed}{hint}")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def install(name: str, *, force: bool = False, target: Path = Path("params.yaml")) -> None:
    """Copy a profile to ``target``.

    Raises:
        UserError: no such profile, or ``target`` holds something that is no profile's text and
            ``force`` is not set.
    """
    text = read(name)
    known = {read(other) for other in summaries()}
    if not force and target.exists() and target.read_text(encoding="utf-8") not in known:
        raise UserError(f"{target}: has edits of its own; keep a copy, or replace it with --force")
    durable.write(target, text.encode())
