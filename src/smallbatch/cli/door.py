"""How a command ends: in one line on stderr and an exit status that says why.

0: done; 2: wrong input, or a machine without memory or disk; 70: a fault of this program, with the
traceback in a file; 75: interrupted; 76: before the time limit.

Handlers of signals are set before anything large is imported, so this module imports little.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from smallbatch.errors import FAULT, INTERRUPTED, is_out_of_memory, shown

GRACE_S = 4.0
"""Seconds that a command has for tidying up once it is interrupted."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MOST = 2000  # characters of a line
_interruption = ""  # what to say of it; empty until there is one
_said = False  # whether that, or another reason to end, has been said


def install() -> None:
    """Prepare this process: signals, the standard streams and characters they cannot show."""
    _on_signals(_leave)
    for number in range(3):  # else the next file that is opened would be taken for a stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.unraisablehook = _on_unraisable
    atexit.register(_at_the_end)  # the first to be registered is the last to be called


def open_to_signals() -> None:
    """From here on a signal raises KeyboardInterrupt, so that the command can tidy up."""
    if signal.getsignal(signal.SIGTERM) is _leave:
        _on_signals(_interrupt)


def close(code: object) -> None:
    """End with this status, which no signal can change now."""
    _on_signals(lambda *_: os._exit(code if isinstance(code, int) else code is not None))
    sys.exit(code)  # pyright: ignore[reportArgumentType] - as it was given to sys.exit


def leave_because_of(error: BaseException) -> int:
    """Say in a line why the command ends; the exit status."""
    global _said
    line, code = ending(error)
    _said = True
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)
    return code


def ending(error: BaseException) -> tuple[str, int]:
    """The line and the exit status for an error that is not the user's."""
    if _interruption or isinstance(error, KeyboardInterrupt):
        return _interruption or f"interrupted by {signal.SIGINT.name}", INTERRUPTED
    if is_out_of_memory(error):
        return one_line(f"memory ran out: {error}" if str(error) else "memory ran out"), 2
    from smallbatch.cli.faults import keep

    return one_line(keep(error)), FAULT


def one_line(text: str) -> str:
    """A message as it is shown: without secrets, on one line, of characters that can be seen."""
    from smallbatch.redact import redact

    line = " ".join(redact(text).split())
    return shown(line) if len(line) <= _MOST else f"{shown(line[:_MOST])}…"


def say(text: str) -> None:
    """Print a line on stdout, of characters that can be seen."""
    print(shown(text), flush=True)


def _on_signals(handler: object) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)  # pyright: ignore[reportArgumentType]


def _at_the_end() -> None:
    """Python sets handlers back after this, and ends by SIGINT where it once saw one go through."""
    _on_signals(signal.SIG_IGN)
    if _interruption:
        with suppress(OSError, ValueError):  # closed
            sys.stdout.flush()
        os._exit(INTERRUPTED)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    import threading

    global _interruption
    _interruption = f"interrupted by {signal.Signals(number).name}"
    _on_signals(_leave)
    timer = threading.Timer(GRACE_S, _leave, (number, None))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _leave(number: int, _frame: FrameType | None) -> None:
    if not _said:
        line = _interruption or f"interrupted by {signal.Signals(number).name}"
        os.write(2, f"{line}\n".encode())
    os._exit(INTERRUPTED)


def _on_unraisable(found: sys.UnraisableHookArgs) -> None:
    """An interruption that came where Python cannot raise it is none the less one."""
    if issubclass(found.exc_type, KeyboardInterrupt):
        _leave(signal.SIGINT, None)
    sys.__unraisablehook__(found)
