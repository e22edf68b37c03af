"""Whether a measurement had the cores for itself, or other programs took a part of them."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress

import psutil

from smallbatch import machine

LEAST = 0.95
"""The share below which a figure was disturbed: others cost it more than a twentieth."""


SLICE_S = 0.5
"""Seconds between two looks: fewer would be told too coarsely, in hundredths of a second."""


class CoreShare:
    """What this process and those it starts get of the cores, from this object's creation on.

    Args:
        most: The number of cores that they can use at a time; by default all.
        without: Processes that it has started and that do something else: they count as others.
    """

    def __init__(self, most: int | None = None, without: Collection[psutil.Process] = ()) -> None:
        self._most, self._without = most or machine.cores(), without
        self._own = self._kept_from = 0.0
        self._last = _used(without)

    def look(self) -> None:
        """Count the time since the last look, if that is SLICE_S or more.

        Idle cores of one time make no room for what others do at another: to be called regularly.
        """
        if time.perf_counter() - self._last[0] >= SLICE_S:
            self._look()

    def so_far(self) -> float:
        """Their processor time, divided by that and what others kept from them; at most 1.

        Others kept from them what they used of the cores that the measurement could have had as
        well, unless as many were idle. On virtual machines, time that the host gave to other
        machines counts as others'.
        """
        self._look()
        return self._own / (self._own + self._kept_from) if self._own > 0 else 1.0

    def _look(self) -> None:
        found = _used(self._without)
        both = zip(found, self._last, strict=True)
        wall, own, others, idle = (max(0.0, now - then) for now, then in both)
        self._last = found
        self._own += own
        self._kept_from += max(0.0, min(others, max(0.0, self._most * wall - own)) - idle)


def taken(share: float) -> str:
    """What others took, in words that begin a sentence or follow a colon."""
    return f"other programs took {100 * (1 - share):.0f} % of the cores"


def _used(without: Collection[psutil.Process]) -> tuple[float, float, float, float]:
    """Seconds so far: of the clock, and on this process's cores its own, others' and idle ones."""
    own, me = 0.0, psutil.Process()
    left_out = {*without}
    for process in without:
        with suppress(psutil.Error):
            left_out |= {*process.children(recursive=True)}
    mine = [it for it in me.children(recursive=True) if it not in left_out]
    # A parent after its children: of one that ends in between it then has the time.
    for process in (*reversed(mine), me):
        with suppress(psutil.Error):
            times = process.cpu_times()
            own += times.user + times.system + times.children_user + times.children_system
    every = psutil.cpu_times(percpu=True)
    usable = [every[i] for i in os.sched_getaffinity(0) if i < len(every)] or every
    idle = sum(core.idle + core.iowait for core in usable)
    # A guest's time is in user and nice as well.
    busy = sum(sum(core) - core.guest - core.guest_nice for core in usable) - idle
    return time.perf_counter(), own, busy - own, idle
