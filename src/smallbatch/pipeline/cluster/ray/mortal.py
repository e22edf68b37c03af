"""Runs a worker that ends when the process that started it ends, in whatever way.

Ray kills its own processes, and leaves what they started.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys


def main(parent: int, words: list[str]) -> None:
    """Run a command of this package in this process."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before prctl was called
        os._exit(1)
    sys.argv = ["smallbatch", *words]
    runpy.run_module("smallbatch", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
