"""What a keeper says of tasks that went wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.errors import UserError, first_line

if TYPE_CHECKING:
    from smallbatch.pipeline.cluster.board import Task

WRONG = (UserError, OSError, ValueError, TypeError, LookupError, AttributeError)
"""What comes of reading a task that another version of this package wrote."""


def wrong(task: Task, error: Exception) -> str:
    """What is wrong with a task, in a line."""
    if isinstance(error, UserError | OSError):
        return first_line(error)
    what = f"{type(error).__name__}: {first_line(error)}"
    return f"submission {task.number} cannot be read ({what}); submit it again"


def lost(error: Exception) -> str:
    """How an attempt at a task was lost, in a line."""
    name, lines = type(error).__name__, str(error).strip().splitlines()
    if name.startswith("RayTaskError"):  # with the traceback of a node
        return f"a node failed: {lines[-1] if lines else name}"
    return f"a node or its process was lost ({name})"
