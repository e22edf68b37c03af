"""Runs a command of this package in a process of its own, for a caller that goes on afterwards.

A training forks workers, sets torch's threads and handles signals, none of which a notebook or a
program of somebody else's would like in its own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, cast

from smallbatch.errors import INTERRUPTED, OUT_OF_TIME, Stopped, UserError
from smallbatch.modules import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

_GRACE_S = 6.0  # a little more than a command takes to keep its progress
_USER = 2  # exit status of wrong input


def run_in_child(words: Sequence[str], *, progress: bool) -> str:
    """Run a command and wait for its end.

    Args:
        words: The command's words, without `smallbatch`.
        progress: Whether to pass on what it says on stderr, line by line.

    Returns:
        What it wrote to stdout, which must be little.

    Raises:
        UserError: It says that its input was wrong.
        Stopped: It stopped early, with its progress kept.
        RuntimeError: It failed.
    """
    said = ""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "smallbatch", *words],
        env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        out, err = cast("IO[str]", process.stdout), cast("IO[str]", process.stderr)
        try:
            for line in err:
                if progress and said:  # the last line is held back: it may say why it failed
                    print(said, file=sys.stderr, flush=True)
                said = line.rstrip("\n")
            result = out.read()
            status = process.wait()
        except BaseException:  # such as an interruption of a notebook's cell
            _end(process)
            raise
    if status == 0:
        if progress and said:
            print(said, file=sys.stderr, flush=True)
        return result
    if status == _USER:
        raise UserError(said.removeprefix("Error: "))
    if status in (INTERRUPTED, OUT_OF_TIME):
        raise Stopped(said, status)
    raise RuntimeError(said or f"smallbatch {words[0]}: ended with status {status}")


def _end(process: subprocess.Popen[str]) -> None:
    """Let it keep its progress; end it by force if that takes too long."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    process.kill()


def environment() -> dict[str, str]:
    """This process's, in which a child finds this package, too, if it is not installed."""
    found = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    if PACKAGE.parent.name not in ("site-packages", "dist-packages"):
        paths = [str(PACKAGE.parent), found.get("PYTHONPATH", "")]
        found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return found


def is_text(word: str) -> bool:
    """Whether a word can be given to a program."""
    try:
        word.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
