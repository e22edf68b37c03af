"""Settings of a worker process in the operating system."""

from __future__ import annotations

import ctypes
import os
import signal


def live_and_die_with(parent: int) -> None:
    """End when the parent ends, in whatever way, and ignore signals to the process group.

    So a worker never writes beside a new training, and the parent decides what a signal does: it
    lets workers complete a last checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)


def die_with(parent: int) -> None:
    """End when the parent ends, in whatever way."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before prctl was called
        os._exit(1)


def keep_freed_memory() -> None:
    """Ask the C library to reuse large freed buffers instead of returning them to the system.

    Each update frees and allocates the same activations, and page faults on them take up to half of
    the time at m ≥ 128. Does nothing without glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**30)
    except (OSError, AttributeError):
        return
