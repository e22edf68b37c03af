"""Runs cases of a target in this process, each in a folder of its own, and judges how they end."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

from benchmarks.fuzz.damage import Edit, apply

LIMIT_S = 10.0
"""Seconds of a case; more is a hang."""

_numbers = itertools.count()
Oracle = Callable[[Path], str | None]


@dataclass(frozen=True)
class Target:
    """One kind of cases.

    Attributes:
        name: Its name.
        share: Part of the cases, relative to the others'.
        words: The command; what edits add comes after it.
        intact: Makes the files that a case damages, in an empty folder that is the current one.
        draw: Draws the edits of a case.
        oracle: Of a case that was accepted: what is not as its files say, None if nothing.
        stubs: What is replaced while its cases run: names, and by what.
    """

    name: str
    share: float
    words: Sequence[str]
    intact: Callable[[Path], None]
    draw: Callable[[Random], list[Edit]]
    oracle: Oracle | None = None
    stubs: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass
class Tally:
    """How cases ended.

    Attributes:
        codes: Cases by exit status.
        failures: Those that ended as none may, with their smallest reproduction.
        seconds: Of all.
    """

    codes: Counter[str] = field(default_factory=Counter[str])
    failures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {**vars(self), "codes": dict(self.codes)}


class Hang(BaseException):
    """A case takes too long."""


class Ending(NamedTuple):
    """How a case ended: its exit status, what kind of wrong that is if any, and why.

    Kinds are "hang", "exit" (an exit status or an output as none may be) and "silent" (it was
    accepted and read as something else).
    """

    code: str
    kind: str | None = None
    why: str = ""


def run_cases(
    target: Target,
    numbers: Iterable[int],
    seed: int,
    scratch: Path,
    *,
    intact: Path | None = None,
    begin: Callable[[int], None] = lambda _: None,
) -> Tally:
    """Run cases, each in ``scratch``.

    Args:
        target: Their kind.
        numbers: With the seed, which cases.
        seed: Any number.
        scratch: An empty folder, its path without links.
        intact: Where the intact files are, or are made if there are none.
        begin: Is told the number of each case.
    """
    intact = intact or scratch / "intact"
    with surroundings(scratch, target.stubs):
        if not intact.exists():
            intact.mkdir(parents=True)
            os.chdir(intact)
            target.intact(intact)
        tally, started = Tally(), time.monotonic()
        for number in numbers:
            begin(number)
            edits = target.draw(Random(f"{seed} {target.name} {number}"))
            ending = run_case(target, edits, intact, scratch)
            tally.codes[ending.code] += 1
            if ending.kind:
                smallest = _smaller(target, edits, ending, intact, scratch)
                tally.failures.append(
                    {"target": target.name, "seed": seed, "number": number, "kind": ending.kind,
                     "why": ending.why[:400], "command": " ".join(target.words),
                     "edits": [_short(it) for it in smallest]}
                )  # fmt: skip
        tally.seconds = time.monotonic() - started
    return tally


def run_case(target: Target, edits: Sequence[Edit], intact: Path, scratch: Path) -> Ending:
    """Run a case; its exit status, and what is wrong with how it ended."""
    # Its own name, as libraries remember databases by their paths.
    folder = scratch / f"case-{next(_numbers)}"
    shutil.copytree(intact, folder)
    os.chdir(folder)
    try:
        words, environment = apply(edits, folder)
        with mock.patch.dict(os.environ, environment), _limited() as hung:
            code, said = call([*target.words, *words])
            if hung:  # and the command has caught that
                raise Hang
            if why := _amiss(code, said):
                return Ending(str(code), "exit", why)
            if code == 0 and target.oracle is not None:
                with redirect_stderr(io.StringIO()):  # warnings of what is damaged
                    why = target.oracle(folder)
                return Ending("0", "silent" if why else None, why or "")
        return Ending(str(code))
    except Hang:
        return Ending("hang", "hang", f"it takes more than {LIMIT_S:g} s")
    finally:
        os.chdir(scratch)
        shutil.rmtree(folder, ignore_errors=True)


def call(words: Sequence[str]) -> tuple[int, str]:
    """Run a command; its exit status and what it said on stderr."""
    from click.testing import CliRunner

    from smallbatch.cli.main import main

    done = CliRunner().invoke(main, list(words))
    said = done.stderr
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return 1, f"{said}\nTraceback: {done.exception!r}"
    return done.exit_code, said


def _amiss(code: int, said: str) -> str | None:
    if code not in (0, 2):
        return f"exit status {code}: {said.strip()}"
    if "Traceback" in said or "S3cret" in said:
        return f"a traceback or a secret: {said.strip()}"
    lines = said.strip().splitlines()
    if code == 2 and len(lines) != 1 and not said.startswith("Usage: "):
        return f"{len(lines)} lines: {said.strip()}"
    return None


def _smaller(
    target: Target, edits: list[Edit], ending: Ending, intact: Path, scratch: Path
) -> list[Edit]:
    """Leave out what a failure does not need."""
    for edit in list(edits) if ending.kind != "hang" else []:
        fewer = [it for it in edits if it is not edit]
        if not fewer:
            break
        found = run_case(target, fewer, intact, scratch)
        if found.kind == ending.kind and found.why[:24] == ending.why[:24]:
            edits = fewer
    return edits


def _short(edit: Edit) -> list[Any]:
    return [it if not isinstance(it, str) or len(it) < 100 else f"{it[:60]}… ({len(it)})"
            for it in edit]  # fmt: skip


@contextmanager
def _limited() -> Generator[list[bool], None, None]:
    hung: list[bool] = []

    def late(_number: int, _frame: FrameType | None) -> None:
        hung.append(True)
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield hung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def surroundings(scratch: Path, stubs: dict[str, Any]) -> Generator[None, None, None]:
    """Own cache and variables, no waiting for a disk, a closed stdin; all put back afterwards."""
    variables = {
        "SMALLBATCH_CACHE": str(scratch / "cache"), "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1",
        "GIT_CEILING_DIRECTORIES": str(scratch), "COLUMNS": "200",
    }  # fmt: skip
    before, stdin = Path.cwd(), sys.stdin
    patches = [mock.patch(name, it) for name, it in {"os.fsync": lambda _: None, **stubs}.items()]
    with mock.patch.dict(os.environ, variables):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ.pop("SMALLBATCH_TIME_LIMIT", None)
        for patch in patches:
            patch.start()
        sys.stdin = io.StringIO()
        try:
            yield
        finally:
            sys.stdin = stdin
            for patch in patches:
                patch.stop()
            os.chdir(before)
