"""One line for an error in params.yaml: the key, what was found and what is allowed."""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel

_PLAIN_WORDS = {
    "string_pattern_mismatch": (
        "lower-case letters, digits, - and _, at most 64, starting with a letter or digit"
    ),
    "too_short": "a list of at least one item",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "string_type": "text",
}


def one_line(model: type[BaseModel], error: Any) -> str:
    """Pydantic's first error as one line: the key, what was found and what is allowed."""
    steps = [str(step) for step in error["loc"] if str(step) not in ("int", "tuple[float, ...]")]
    steps = [step for step in steps if not step.startswith(("literal[", "["))]
    key = ".".join(_short(step) for step in steps)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {allowed(steps[-1], _fields_at(model, steps[:-1]))}"
    if error["type"] == "missing":
        return f"{key}: missing"
    message = _short(str(error["msg"]).removeprefix("Value error, "), 1000)
    if error["type"] == "value_error" and not isinstance(error["input"], str | int | float | bool):
        return f"{key}: {message}" if key else message
    found = _shown(error["input"])
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
        hint = allowed(found.strip("'"), choices)
        return f"{key}: found {found}, {hint}"
    if error["type"] in _PLAIN_WORDS:
        message = _PLAIN_WORDS[error["type"]]
    for prefix in ("Input should be ", "expected "):
        message = message.removeprefix(prefix)
    return f"{key}: found {found}, allowed: {message}"


def _shown(value: object) -> str:
    try:
        return _short(repr(value))
    except ValueError:  # Python refuses to write an integer of more than 4,300 digits
        return "a number of thousands of digits"


def _short(text: str, width: int = 80) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    """The field names of the model at the key path ``steps``."""
    for step in steps:
        field = model.model_fields.get(step)
        if field is None:  # the name of a study, a key of the mapping above
            continue
        inner = [field.annotation, *get_args(field.annotation)]
        found = [t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)]
        model = found[0] if found else model
    return list(model.model_fields)


def allowed(found: str, choices: list[str]) -> str:
    """The allowed names as text, and the closest match."""
    close = difflib.get_close_matches(found, choices, n=1, cutoff=0.6)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"allowed: {', '.join(choices)}{hint}"
