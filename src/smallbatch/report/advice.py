"""What `smallbatch advise` shows and keeps: a screen of text, a page, and the data as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict, RootModel

from smallbatch import durable
from smallbatch.analysis.advice import Advice
from smallbatch.records.reading import read_json
from smallbatch.report.advice_code import code_to_paste
from smallbatch.report.advice_page import advice_page
from smallbatch.report.advice_text import advice_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["advice_text", "code_to_paste", "read_advice", "write_advice"]

VERSION = 1
"""Of the JSON: another where a key means something else or is gone."""


@dataclass(frozen=True, kw_only=True)
class _Saved(Advice):
    """An `Advice` as it is in a file, beside the version of its form."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False
    )

    advice: Literal[1]


def write_advice(advice: Advice, folder: Path, name: str = "advice") -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.html``, each whole or not at all.

    Returns:
        Their paths, in this order.

    Raises:
        ValueError: A number of it is not finite.
        OSError: A file cannot be written.
    """
    data, page = folder / f"{name}.json", folder / f"{name}.html"
    content = {"advice": VERSION, **asdict(advice)}
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    durable.write(data, f"{text}\n".encode())
    durable.write(page, advice_page(advice).encode())
    return data, page


def read_advice(path: Path) -> Advice:
    """Read what `write_advice` has written as JSON.

    Raises:
        UserError: The file is missing, or it is not such a file.
    """
    saved = read_json(RootModel[_Saved], path, "`smallbatch advise` writes it").root
    return Advice(**{field.name: getattr(saved, field.name) for field in fields(Advice)})
