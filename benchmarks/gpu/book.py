"""The results: a JSON file that grows entry by entry, and tables made from it."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Book:
    """Entries by part and name; kept on disk after each, so that a rerun does what is missing.

    Attributes:
        path: of the JSON file.
        deadline: on `time.monotonic`'s clock; what would pass it is left out.
    """

    path: Path
    deadline: float
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.entries = json.loads(self.path.read_text())

    def do(self, part: str, name: str, measure: Callable[[], Any], needs: float = 20) -> Any:
        """The entry, measured unless it is there; a failure is an entry too, tried again later.

        Args:
            part: of the book.
            name: of the entry.
            measure: what makes it.
            needs: seconds that must be left.
        """
        entries = self.entries.setdefault(part, {})
        known = entries.get(name)
        if known is not None and not (isinstance(known, dict) and "error" in known):
            return known
        if time.monotonic() + needs > self.deadline:
            self.skipped.append(f"{part}: {name}")
            return None
        start = time.monotonic()
        try:
            entries[name] = measure()
        except Exception as error:  # noqa: BLE001 - one failure must not take the others along
            traceback.print_exc(limit=8, file=sys.stderr)
            entries[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
            broken = _broken()
        else:
            broken = False
        took = time.monotonic() - start
        print(f"[{took:6.1f} s] {part}: {name}: {_short(entries[name])}", flush=True)
        self.path.write_text(json.dumps(self.entries, indent=1) + "\n")
        if broken:
            raise SystemExit("the device answers no more: call again with the same --out")
        return entries[name]

    def get(self, part: str) -> dict[str, Any]:
        """The entries of a part that have succeeded."""
        entries = self.entries.get(part, {})
        return {k: v for k, v in entries.items() if not (isinstance(v, dict) and "error" in v)}

    def errors(self) -> list[str]:
        """What failed."""
        return [
            f"{part}: {name}: {value['error']}"
            for part, entries in self.entries.items()
            for name, value in entries.items()
            if isinstance(value, dict) and "error" in value
        ]


def _broken() -> bool:
    """Whether an error has left the device, or the allocator in a capture, of no further use."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return True
    return False


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else text[:157] + "..."


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *[[_cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "–" if value is None else str(value)
