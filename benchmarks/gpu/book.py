"""The results: a JSON file that grows line by line."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smallbatch import markdown

Row = dict[str, Any]


@dataclass
class Book:
    """Rows by part; kept on disk after each, so that a rerun does what is missing.

    Attributes:
        path: of the JSON file.
        deadline: on `time.monotonic`'s clock; parts that would begin after it are left out.
        parts: by name, each with its ``rows``, and once it has ended ``seconds`` and ``error``.
        skipped: parts left out for time.
    """

    path: Path
    deadline: float
    parts: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    skipped: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        if self.path.exists():
            self.parts = json.loads(self.path.read_text())

    def done(self, part: str) -> bool:
        """Whether a part has ended without a failure; what a failed one left is dropped."""
        with self._lock:
            known = self.parts.get(part)
            if known and known.get("error", "") is None and not _errors(known):
                return True
            self.parts.pop(part, None)
            return False

    def add(self, part: str, row: Row) -> None:
        """A line of a part's."""
        with self._lock:
            self.parts.setdefault(part, {"rows": []})["rows"].append(row)
            self._keep()

    def end(self, part: str, seconds: float, error: str | None) -> None:
        """A part has ended."""
        with self._lock:
            entry = self.parts.setdefault(part, {"rows": []})
            self.parts[part] = entry | {"seconds": round(seconds, 1), "error": error}
            self._keep()

    def skip(self, part: str) -> None:
        """A part is left out for time."""
        with self._lock:
            self.skipped.append(part)

    def rows(self, beginning: str) -> list[Row]:
        """Rows, in order, of the parts whose names begin so, without failures."""
        return [
            row
            for name, entry in self.parts.items()
            if name.startswith(beginning)
            for row in entry["rows"]
            if "error" not in row
        ]

    def failed(self) -> list[str]:
        """What failed, a line each."""
        lines: list[str] = []
        for name, entry in self.parts.items():
            lines += [f"{name}: {error}" for error in _errors(entry)]
            if entry.get("error"):
                lines.append(f"{name}: {entry['error']}")
            wrong = [row for row in entry["rows"] if row.get("passed") is False]
            lines += [
                f"{name}: {row.get('check') or row.get('peer')} did not pass" for row in wrong
            ]
        return lines

    def _keep(self) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.parts, indent=1) + "\n")
        part.replace(self.path)  # whole, whenever this process is ended


def _errors(entry: dict[str, Any]) -> list[str]:
    tags = ("way", "peer", "check", "norm", "m")
    return [
        " ".join(str(row[tag]) for tag in tags if tag in row) + f": {row['error']}"
        for row in entry["rows"]
        if "error" in row
    ]


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table, its numbers rounded."""
    return markdown.table(head, [[_cell(value) for value in row] for row in rows]) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return "–" if value is None else str(value)
