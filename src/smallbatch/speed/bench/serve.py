"""How a script that is measured answers requests: the other end of `plain.py`. Needs no library."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import IO


def serve(answer: Callable[[list[str], IO[str]], None]) -> None:
    """Answer the command line, or with ``--requests`` every line of stdin, a JSON list of options.

    Args:
        answer: Is given options and where to write its line of JSON.
    """
    if sys.argv[1:] != ["--requests"]:
        answer(sys.argv[1:], sys.stdout)
        return
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    death_of_parent = 1  # PR_SET_PDEATHSIG, of Linux: nobody waits for an answer then
    ctypes.CDLL(None).prctl(death_of_parent, signal.SIGKILL)
    for line in sys.stdin:
        answer(json.loads(line), out)
