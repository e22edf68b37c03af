"""This machine's C++ compiler, run so that it ends: at its time limit, or with who asked for it."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from smallbatch.errors import first_line

# For the processor at hand, which compilers for ARM know by the second name.
_NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
FLAGS = ("-O3", _NATIVE, "-std=c++17", "-shared", "-fPIC", "-fno-math-errno")
LIMIT_S = 300.0  # of a compilation, which takes some seconds on an idle core
VERSION_LIMIT_S = 60.0  # of telling a version

# Leads a session of its own, and ends it when its caller has ended, in whatever way: only then does
# its standard input. A compiler is several processes, so a signal to its first would not do.
_GUARD = """
import os, select, signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
while child.poll() is None:
    if select.select([0], [], [], 0.02)[0]:
        os.killpg(0, signal.SIGKILL)
sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
"""


class CompilerFailed(OSError):  # noqa: N818 - the state of a machine
    """There is no compiler, or it fails."""


def compiler() -> str | None:
    """The C++ compiler: ``$CXX``, or the first of the usual names on PATH; None without one."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


@cache
def identity() -> tuple[str, str]:
    """The compiler, and the version that it reports.

    Raises:
        CompilerFailed: There is none, or it reports none.
    """
    cxx = compiler()
    if cxx is None:
        raise CompilerFailed("found no C++ compiler (c++, g++ or clang++ on PATH, or $CXX)")
    return cxx, run([cxx, "--version"], VERSION_LIMIT_S)


def run(command: Sequence[str], limit: float) -> str:
    """Run the compiler, for at most ``limit`` seconds; returns its standard output.

    Raises:
        CompilerFailed: It fails or takes longer.
    """
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _GUARD, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None  # noqa: S101 - for the type checker
    stdin, guard.stdin = guard.stdin, None  # `communicate` would close it at once
    try:
        out, said = guard.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise CompilerFailed(f"{command[0]} had not ended after {limit:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)  # and what a compiler left behind
        stdin.close()
        guard.wait()
        for stream in (guard.stdout, guard.stderr):
            if stream is not None:
                stream.close()
    if guard.returncode:
        code = guard.returncode
        how = f"exit status {code}" if code < 128 else f"killed by signal {code - 128}"
        why = _words(said) or how
        raise CompilerFailed(f"{command[0]} fails: {why}")
    return out.decode(errors="replace")


def _words(said: bytes) -> str:
    """The first error among what a compiler said, or else its first line."""
    lines = said.decode(errors="replace").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()]
    return first_line(CompilerFailed("\n".join(errors or lines))) if lines else ""
