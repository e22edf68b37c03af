"""What goes to the cluster as it is: its nodes may have another version of this package, or none.

It imports nothing of the package before it is called on a node, and messages are text and bytes.
"""

from __future__ import annotations

import json
import platform
from concurrent.futures import ThreadPoolExecutor
from typing import Any

FULL, TAKEN, STALE = "full", "taken", "stale"
_MOST_BYTES = 2**28  # that wait for the keeper
_AT_ONCE_BYTES = 2**26
MOST_TAKES = 2 + _MOST_BYTES // _AT_ONCE_BYTES
"""Calls of `take` after which all has been taken that had been pushed before."""


class Inbox:
    """An actor between nodes, which call it, and the keeper, which does: no node need reach it."""

    def __init__(self) -> None:
        self._current: dict[str, list[int]] | None = None
        self._letters: list[tuple[str, bytes]] = []
        self._size = 0
        self._offers: dict[str, Any] = {}
        self._wanted: set[str] = set()

    def push(self, head: object, body: object) -> str:
        """Take a node's message, unless it comes too early, or from an attempt that is over."""
        if self._current is None or self._size > _MOST_BYTES:
            return FULL
        if not (isinstance(head, str) and isinstance(body, bytes)):
            raise TypeError("a message is text and bytes")
        content = json.loads(head)
        if self._current.get(content["key"]) != content["of"]:
            return STALE
        self._letters.append((head, body))
        self._size += len(body)
        return TAKEN

    def want(self, name: str) -> Any:
        """The files of a name, once the keeper has laid them out; until then None."""
        if (name := str(name)) not in self._offers:
            self._wanted.add(name)
        return self._offers.get(name)

    def admit(self, current: dict[str, list[int]]) -> None:
        """Say of which submission and attempt of each task messages are taken."""
        self._current = current

    def take(self) -> tuple[list[tuple[str, bytes]], list[str]]:
        """The oldest messages, and names of files that nodes wait for."""
        taken, size = 0, 0
        while taken < len(self._letters) and size < _AT_ONCE_BYTES:
            size += len(self._letters[taken][1])
            taken += 1
        letters, self._letters = self._letters[:taken], self._letters[taken:]
        self._size -= size
        return letters, sorted(self._wanted)

    def offer(self, name: str, files: Any) -> None:
        """Lay files out."""
        self._offers[name] = files
        self._wanted.discard(name)

    def withdraw(self, name: str) -> None:
        """Take files back."""
        self._offers.pop(name, None)
        self._wanted.discard(name)


def carry_out(inbox: Any, message: str) -> str:
    """Carry out a task on this node; returns JSON of how that ended."""
    try:
        from smallbatch.pipeline.cluster.ray import node
    except Exception as error:  # noqa: BLE001 - whatever an installation lacks
        said = f"{platform.node()}: smallbatch cannot be imported: {error}"
        return json.dumps({"exit": 2, "said": said, "files": {}})
    # Not in the process's main thread: while that waits for an answer of the inbox, Ray lends the
    # task's cores to another task.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(node.carry_out, inbox, json.loads(message)).result()
