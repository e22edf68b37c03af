"""Shows a column in MLflow while it trains, without delaying the training.

The mirror is a separate process, the only one that imports mlflow. The trainer sends it lines of
JSON through a pipe and never waits for it: what does not fit into a queue is dropped. Nothing is
lost, because `finish`, or later `smallbatch sync`, replays the result files.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch.redact import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from smallbatch.tracking.records import ColumnInfo, RunInfo

QUEUE = 4 * 2**20
"""Most bytes that wait for the mirror; enough for tens of thousands of epochs."""
GIVE_UP_S = 10.0
"""Most seconds by which a tracking server that cannot be reached delays a column's end."""
REST_S = 20.0
"""Most seconds that are waited for MLflow's import before speeds are measured."""


class Teller(ABC):
    """Says what happens to a column while it trains, in messages that JSON can hold."""

    def start(self, column: ColumnInfo) -> None:
        """A column begins."""
        self._send("start", {**asdict(column), "time": time.time()})

    def run_begun(self, run: str, started: datetime) -> None:
        """A run, given by its hash, began; perhaps in an earlier attempt."""
        self._send("begin", {"run": run, "time": started.timestamp()})

    def run_epoch(self, run: RunInfo, row: Mapping[str, Any]) -> None:
        """An epoch ended; `row` holds its values as in `history.parquet`."""
        with suppress(TypeError, ValueError):
            values = {
                key: float(value)
                for key, value in row.items()
                if not isinstance(value, str) and value is not None
            }
            self._send("epoch", {"run": asdict(run), "row": values, "time": time.time()})

    @abstractmethod
    def _send(self, kind: str, content: Mapping[str, Any]) -> None:
        """Pass a message on."""


class LiveMirror(Teller):
    """Mirrors columns while they train. Only `finish` waits, and no method raises an error.

    Args:
        uri: The tracking URI; by default MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db`.
        niceness: How much the process gives way to the training, 0 (not at all) to 19.
    """

    def __init__(self, uri: str | None = None, niceness: int = 19):
        self._uri, self._niceness = uri, niceness
        self._initialising = self._began = False
        self._received = b""
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._unanswered: list[Path] = []
        self._launch()

    def rest(self, stopping: Callable[[], bool] = lambda: False, timeout_s: float = REST_S) -> None:
        """Wait until the process has imported MLflow, as it keeps a core busy until then.

        Args:
            stopping: Ends the wait.
            timeout_s: Most seconds to wait.
        """
        process, until = self._process, time.monotonic() + timeout_s
        while process is not None and not self._began and (left := until - time.monotonic()) > 0:
            if stopping():
                return
            answers = self._answers(process, min(left, 0.2))
            if answers is None:
                return
            for answer in answers:
                self._heed(answer)

    def start(self, column: ColumnInfo) -> None:
        """A column begins."""
        if self._process is None:
            self._launch()
        super().start(column)

    def forward(self, column: str, message: Mapping[str, Any]) -> None:
        """Pass on what a :class:`Teller` said of a column that trains elsewhere.

        Its runs stay as they are when this process ends.

        Args:
            column: A name for the column, the same in all that is said of it.
            message: With its ``kind``.
        """
        if self._process is None:
            self._launch()
        self._send(str(message.get("kind")), {**message, "column": column})

    def finish_later(self, directory: Path) -> None:
        """Begin to complete MLflow from a column's result files; `finish` of another waits for it.

        Args:
            directory: The column's directory.
        """
        if self._process is None:
            self._launch()
        self._ask(directory)

    def finish(self, directory: Path, timeout_s: float = 60.0) -> bool:
        """Complete MLflow from the column's result files, then end the process.

        So too from those that `finish_later` named. This takes at most GIVE_UP_S if the server
        cannot be reached, and at most `timeout_s` if it answers slowly or the process hangs. After
        a very short training, the start of the process, a few seconds, is also waited for.

        Args:
            directory: The column's directory.
            timeout_s: Most seconds to wait.

        Returns:
            Whether MLflow is complete. If not, one line on stderr names the columns that it lacks.
        """
        self._ask(directory)
        reason = self._reply(timeout_s)
        self._stop(graceful=reason is None)
        if reason is None:
            return True
        print(
            f"warning: MLflow ({self._shown}) does not show all of "
            f"{', '.join(dict.fromkeys(map(str, self._unanswered)))}: "
            f"{reason}; `smallbatch sync` will replay it",
            file=sys.stderr,
        )
        return False

    def _ask(self, directory: Path) -> None:
        self._unanswered.append(directory)
        self._send("finish", {"directory": str(directory.absolute())})

    @property
    def _shown(self) -> str:
        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI")
        return redact(uri) if uri else "mlflow.db"

    def abort(self) -> None:
        """The column ends without result files: let the process mark its runs as killed.

        The process does so on its own, after this method has returned.
        """
        process, self._process = self._process, None
        if process is None:
            return
        self._flush(process)
        with suppress(OSError):
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()  # at the end of its input the process marks the runs and ends
        # The process is not waited for; without an exit status Python would warn about it.
        process.returncode = 0

    def _launch(self) -> None:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        named = {"MLFLOW_TRACKING_URI": self._uri} if self._uri else {}
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            **named,
            # Two attempts of 5 s each: together GIVE_UP_S.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._waiting.clear()
        self._size = 0
        self._unanswered = []
        self._initialising = self._began = False
        self._received = b""
        try:
            # -P: without it, folders such as ./data and ./models could be imported as packages.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "smallbatch.tracking.live_process",
                    str(self._niceness),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            if self._process.stdin:
                os.set_blocking(self._process.stdin.fileno(), False)
        except OSError:
            self._process = None

    def _send(self, kind: str, content: Mapping[str, Any]) -> None:
        process = self._process
        if process is None:
            return
        try:
            line = json.dumps({**content, "kind": kind}, default=list).encode() + b"\n"
        except (TypeError, ValueError):
            return
        if kind != "epoch" or self._size + len(line) <= QUEUE:
            self._waiting.append(line)
            self._size += len(line)
        self._flush(process)

    def _flush(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is None:
            return
        try:
            while self._waiting:
                line = self._waiting[0]
                written = os.write(process.stdin.fileno(), line)
                self._size -= written
                if written < len(line):
                    self._waiting[0] = line[written:]
                else:
                    self._waiting.popleft()
        except BlockingIOError:
            return
        except (OSError, ValueError):  # the process has ended; `finish` will report it
            self._waiting.clear()
            self._size = 0

    def _reply(self, timeout_s: float) -> str | None:
        """Wait for the answer to each `finish`: None for success, else what went wrong first."""
        process = self._process
        if process is None:
            return "its mirror process did not start"
        started, limit_s = time.monotonic(), timeout_s
        while (left := started + limit_s - time.monotonic()) > 0:
            self._flush(process)
            answers = self._answers(process, min(left, 0.2))
            if answers is None:
                return "its mirror process died"
            for answer in answers:
                if answer.get("error") is not None:
                    return answer["error"]
                if "reached" in answer:
                    limit_s = timeout_s if answer["reached"] else min(timeout_s, GIVE_UP_S)
                self._heed(answer)
            if not self._unanswered:
                return None
        if self._initialising:
            return "its database is still being made"
        return "the tracking store took too long"

    def _answers(
        self, process: subprocess.Popen[bytes], wait_s: float
    ) -> list[Mapping[str, Any]] | None:
        """What the process says within some seconds; None when it has ended."""
        if process.stdout is None:
            return None
        if not select.select([process.stdout], [], [], wait_s)[0]:
            return []
        part = os.read(process.stdout.fileno(), 65536)
        if not part:
            return None
        *lines, self._received = (self._received + part).split(b"\n")
        return [json.loads(line) for line in lines]

    def _heed(self, answer: Mapping[str, Any]) -> None:
        if "error" in answer:
            self._unanswered.pop(0)  # answers come in the order of the questions
        self._initialising = answer.get("initialising", self._initialising)
        self._began = answer.get("began", self._began)

    def _stop(self, *, graceful: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()
        if self._initialising:  # it finishes that, and the next column finds the database
            process.returncode = 0
            return
        try:
            if graceful:
                process.wait(timeout=5)
                return
        except subprocess.TimeoutExpired:
            pass
        process.kill()
        process.wait()
