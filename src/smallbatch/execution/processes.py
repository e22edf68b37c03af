"""What a worker process asks of the operating system."""

from __future__ import annotations

import ctypes
import os
import signal


def live_and_die_with(parent: int) -> None:
    """End with the parent, however it ends; signals to the whole group are the parent's to judge.

    So nobody writes beside a new training, and nobody dies in the middle of a last checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def keep_freed_memory() -> None:
    """Ask the C library to reuse large freed buffers instead of returning them to the system.

    Each update frees and takes the same activations; page faults on them cost up to half of the
    time at m ≥ 128. Without glibc nothing changes.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**30)
    except (OSError, AttributeError):
        return
