"""Profiles: complete params files in `profiles/`, some of which have several scales.

A profile's ``scales`` maps a name to the changes for a smaller copy: ``epochs`` multiplies the
epochs of every study, and all else replaces the values of the same keys. A profile is installed as
a plain params.yaml. Of a scale it contains only the label and the data set's name, which keeps
results of different scales apart.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from smallbatch import durable
from smallbatch.errors import UserError

FOLDER = Path("profiles")


def summaries() -> dict[str, str]:
    """The first comment line of every profile, by name."""
    return {
        path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        for path in sorted(FOLDER.glob("*.yaml"))
    }


def read(name: str, scale: str | None = None) -> str:
    """The text of a profile in the form that is installed.

    Args:
        name: The name of the profile.
        scale: One of its scales; by default full scale.

    Raises:
        UserError: There is no such profile or scale.
    """
    names = list(summaries())
    if name not in names:
        hint = _hint(name, names)
        allowed = ", ".join(names) or f"none, as {FOLDER}/ is not in this folder"
        raise UserError(f"profile: found {name!r}, allowed: {allowed}{hint}")
    return _scaled(name, (FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), scale)


def install(
    name: str,
    scale: str | None = None,
    *,
    force: bool = False,
    target: Path = Path("params.yaml"),
) -> None:
    """Copy a profile to ``target``.

    Raises:
        UserError: There is no such profile or scale; or ``target`` is not the text of a profile,
            and ``force`` is not set.
    """
    text = read(name, scale)
    if not force and target.exists() and target.read_text(encoding="utf-8") not in _all_texts():
        raise UserError(f"{target}: has edits of its own; keep a copy, or replace it with --force")
    durable.write(target, text.encode())


def _all_texts() -> set[str]:
    texts: set[str] = set()
    for name in summaries():
        scales = _load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")).get("scales", {})
        texts |= {read(name, scale) for scale in (None, *scales)}
    return texts


def _scaled(name: str, text: str, scale: str | None) -> str:
    params = _load(text)
    scales: dict[str, Any] = params.pop("scales", {})
    if scale not in (None, *scales):
        raise UserError(
            f"scale: found {scale!r}, allowed with {name}: {', '.join(scales) or 'none'}"
            f"{_hint(scale or '', [*scales])}"
        )
    if scale is None:
        return text
    change = scales[scale]
    params["dataset"] |= {"scale": scale, "name": f"{params['dataset']['name']}-{scale}"}
    factor = change.pop("epochs")
    for study in params["studies"].values():
        study["epochs"] = max(1, round(study["epochs"] * factor))
    _replace(params, change)
    return _dump(params)


def _replace(values: MutableMapping[str, Any], change: MutableMapping[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, MutableMapping) and key in values:
            _replace(values[key], value)
        else:
            values[key] = value


def _load(text: str) -> Any:
    from ruamel.yaml import YAML

    return YAML().load(text)  # keeps the comments


def _dump(params: Any) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 4096
    stream = io.StringIO()
    yaml.dump(params, stream)
    return stream.getvalue()


def _hint(found: str, names: list[str]) -> str:
    close = difflib.get_close_matches(found, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
