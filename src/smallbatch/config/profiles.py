"""Profiles: complete params files that come with the package, some of which have several scales.

A profile's ``scales`` maps a name to the changes for a smaller copy: ``epochs`` multiplies the
epochs of every study, and all else replaces the values of the same keys. A number of seeds in its
``grid`` is that of every study, also of one that has its own, unless the scale gives it another. A
profile is installed as a plain params.yaml. Of a scale it contains only the label and the data
set's name, which keeps results of different scales apart.
"""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from smallbatch import durable
from smallbatch.config import yaml_file
from smallbatch.config.params import Params, load_params, parse_params
from smallbatch.errors import UserError

FOLDER = Path(__file__).parents[1] / "profiles"

_COST = re.compile(r"^#(?: Cost:)? +(\w+ +[\d,]+ runs of .*\S)", re.MULTILINE)


def summaries() -> dict[str, str]:
    """The first comment line of every profile, by name.

    Raises:
        UserError: A profile cannot be read.
    """
    return {
        path.stem: yaml_file.text_of(path).partition("\n")[0].lstrip("# ").rstrip()
        for path in sorted(FOLDER.glob("*.yaml"))
    }


def costs() -> dict[str, list[str]]:
    """What each scale of a profile costs, by the profile's name: lines of its head.

    They are such as ``small  1,836 runs of 10 epochs``, after ``Cost:`` or below it. A profile
    without scales has none; its summary says what it costs.

    Raises:
        UserError: A profile cannot be read.
    """
    return {
        path.stem: _COST.findall(yaml_file.text_of(path)) for path in sorted(FOLDER.glob("*.yaml"))
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
        raise UserError(f"profile: found {name!r}, allowed: {', '.join(names)}{hint}")
    return _scaled(name, scale)


def own_images(name: str) -> Path | None:
    """Where a profile takes the user's images from; None: it brings its own or fetches them.

    Raises:
        UserError: There is no such profile.
    """
    path = _checked(name).dataset.path
    return Path(path) if path else None


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
    if not force and target.exists() and target.read_bytes() not in _all_texts():
        raise UserError(f"{target}: has edits of its own; keep a copy, or replace it with --force")
    durable.write(target, text.encode())


def _all_texts() -> set[bytes]:
    texts: set[bytes] = set()
    for name in summaries():
        with suppress(UserError):  # of another profile, which is damaged
            texts |= {read(name, scale).encode() for scale in (None, *_checked(name).scales)}
    return texts


def _scaled(name: str, scale: str | None) -> str:
    checked = _checked(name)
    if scale not in (None, *checked.scales):
        raise UserError(
            f"scale: found {scale!r}, allowed with {name}: {', '.join(checked.scales) or 'none'}"
            f"{_hint(scale or '', [*checked.scales])}"
        )
    path = FOLDER / f"{name}.yaml"
    text = yaml_file.text_of(path)
    if scale is None:
        return text
    # What an alias stands for is one object, which must not be changed for each of its places.
    params = _copy(yaml_file.parse(text, str(path)))
    _shrink(params, scale, path)
    parse_params(params, f"{path}: scales.{scale}")
    with_comments = _load(text)
    _shrink(with_comments, scale, path)
    scaled = _dump(with_comments)
    return scaled if _copy(yaml_file.parse(scaled, str(path))) == params else _dump(params)


def _shrink(params: Any, scale: str, path: Path) -> None:
    change = params.pop("scales")[scale]
    params["dataset"] |= {"scale": scale, "name": f"{params['dataset']['name']}-{scale}"}
    factor = change.pop("epochs", None)
    if not isinstance(factor, int | float) or not 0 < factor <= 1:
        raise UserError(f"{path}: scales.{scale}.epochs: found {factor!r}, allowed: up to 1")
    grid = change.get("grid")
    of_the_grid = isinstance(grid, MutableMapping) and "seeds" in grid
    for study in params["studies"].values():
        study["epochs"] = max(1, round(study["epochs"] * factor))
        if of_the_grid:
            # ruamel removes it, and fails at what merges this study in YAML.
            with suppress(KeyError):
                study.pop("seeds", None)
    _replace(params, change)


def _copy(value: Any) -> Any:
    """A tree in which no two places share an object."""
    if isinstance(value, dict):
        return {key: _copy(it) for key, it in value.items()}
    return [_copy(it) for it in value] if isinstance(value, list) else value


def _checked(name: str) -> Params:
    """A profile, which can be written to like any other file."""
    return load_params(FOLDER / f"{name}.yaml")


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
