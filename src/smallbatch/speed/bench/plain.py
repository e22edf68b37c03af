"""A script that is measured, in a process that answers one request after another.

To start it takes longer than to measure: libraries are imported, and threads begin.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

import psutil

from smallbatch.speed.share import SLICE_S, CoreShare

SCRIPTS = {"textbook": Path("textbook.py"), "jax": Path("peers", "jax_script.py")}


class Plain:
    """The process; it starts with the first request, and anew after one that ended it.

    Args:
        name: Of SCRIPTS.
    """

    def __init__(self, name: str = "textbook") -> None:
        self._script = Path(__file__).parent / SCRIPTS[name]
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None

    def __enter__(self) -> Plain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end()

    def measure(self, words: Sequence[object]) -> dict[str, Any]:
        """Train as options of the script say.

        Returns:
            What the script prints, with ``images_per_second`` and the ``share`` of the cores.

        Raises:
            RuntimeError: The script failed.
        """
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it was killed after its last answer
        process = self._process = self._process or self._start()
        if self._said is not None:
            self._said.truncate(0)
        cores = CoreShare()
        try:
            requests, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
            requests.write(json.dumps([str(word) for word in words]) + "\n")
            requests.flush()
            while not select.select([answers], [], [], SLICE_S)[0]:
                cores.look()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # an interruption: it would answer the next request with this one
            self._end()
            raise
        if not line:
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            code, said = process.returncode, self._end()
            why = f"killed by signal {-code}" if code is not None and code < 0 else said
            raise RuntimeError(f"{self._script.name} failed: {why}")
        done = json.loads(line)
        speed = done["images"] / done["seconds"]
        return {**done, "images_per_second": speed, "share": cores.so_far()}

    def _start(self) -> subprocess.Popen[str]:
        self._said = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115
        return subprocess.Popen(
            [sys.executable, "-P", str(self._script), "--requests"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
        )  # fmt: skip

    def _end(self) -> str:
        """End the process; returns what it said on stderr of its last request."""
        if self._process is None or self._said is None:
            return ""
        with suppress(psutil.Error):
            # Those of its loader, else, keep the pipe open for some seconds more.
            for worker in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    worker.kill()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # of a request that it did not take
                cast("IO[str]", pipe).close()
        self._said.seek(0)
        said = self._said.read()
        self._said.close()
        self._process = self._said = None
        return said
