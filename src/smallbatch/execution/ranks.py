"""Processes that train one run together: how they find each other, and how they end."""

from __future__ import annotations

import os
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smallbatch.engines.ranks import Ranks
    from smallbatch.execution.chunks import Job

# Seconds for which a rank that lost the others says nothing: their parent knows better why.
SILENT_S = 3.0


class Meeting:
    """A file by which ranks find each other; it has no name, and is gone with the last of them."""

    def __init__(self) -> None:
        self._file = os.memfd_create("smallbatch-ranks")

    @property
    def path(self) -> str:
        """Its path in a process that has it from its parent."""
        return f"/proc/self/fd/{self._file}"

    def close(self) -> None:
        """This process needs it no longer."""
        os.close(self._file)

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._file = state["_file"].detach()


def met(job: Job, rank: int, meeting: Meeting) -> Ranks:
    """The ranks of a job, once all are there; a worker that is no rank is alone."""
    from smallbatch.engines.ranks import Ranks

    if job.ranks == 1:
        return Ranks()
    return Ranks.meet(rank, job.ranks, job.placement.device, meeting.path)
