"""Completes MLflow from the columns of an advice, at its end or when it is called again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from smallbatch.pipeline.advise.ledger import Ledger
    from smallbatch.tracking import LiveMirror

MIRROR_S = 60.0
"""Most seconds that this takes."""
NICENESS = 5
"""Of the copy to MLflow: with less of the processors it would not end in time."""


def catch_up(ledger: Ledger, say: Callable[[str], object]) -> None:
    """Complete MLflow from the columns of an answer given before, as far as they are there."""
    from smallbatch.tracking import LiveMirror

    unlogged = ledger.unlogged
    if lost := [str(it) for it, is_there in unlogged.items() if not is_there]:
        say(f"MLflow lacks runs of {', '.join(lost)}, which later trainings replaced")
    if columns := [it for it, is_there in unlogged.items() if is_there]:
        complete(LiveMirror(niceness=NICENESS), columns, MIRROR_S, ledger)


def complete(mirror: LiveMirror, columns: Sequence[Path], timeout_s: float, ledger: Ledger) -> None:
    """Complete MLflow from columns' files; what it then still lacks, the next call completes."""
    for column in columns[:-1]:
        mirror.finish_later(column)
    if mirror.finish(columns[-1], timeout_s=timeout_s):
        ledger.logged()
