"""Whether a measurement had the cores for itself, or other programs took a part of them."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil

from smallbatch import machine

LEAST = 0.95
"""The share below which a figure was disturbed: others cost it more than a twentieth."""


class CoreShare:
    """What this process and those it started get of the cores, from its creation on.

    Args:
        most: The number of cores that they can use at a time; by default all.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most or machine.cores()
        self._begin = _used()

    def so_far(self) -> float:
        """Their processor time, divided by that and what others kept from them; at most 1.

        What others use of the cores is not kept from them as far as cores were idle as well. On
        virtual machines, time that the host gave to other machines counts as others'.
        """
        wall, own, others, idle = (
            now - then for now, then in zip(_used(), self._begin, strict=True)
        )
        wanted = min(own + max(0.0, others - idle), self._most * wall)
        return min(1.0, own / wanted) if wanted > 0 else 1.0


def taken(share: float) -> str:
    """What others took, in words that begin a sentence or follow a colon."""
    return f"other programs took {100 * (1 - share):.0f} % of the cores"


def _used() -> tuple[float, float, float, float]:
    """Seconds so far: of the clock, and on this process's cores its own, others' and idle ones."""
    own, me = 0.0, psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):  # it has ended, and its time is that of a child that was
            times = process.cpu_times()
            own += times.user + times.system + times.children_user + times.children_system
    every = psutil.cpu_times(percpu=True)
    usable = [every[i] for i in os.sched_getaffinity(0) if i < len(every)] or every
    idle = sum(core.idle + core.iowait for core in usable)
    # A guest's time is in user and nice as well.
    busy = sum(sum(core) - core.guest - core.guest_nice for core in usable) - idle
    return time.perf_counter(), own, busy - own, idle
