"""A stand-in for a cluster: workers are processes of this machine that outlive who submitted them.

Run as a program it is the `smallbatch` command whose cluster, whatever is asked for, is this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

from smallbatch.config.params import ComputeConfig
from smallbatch.pipeline.cluster import elsewhere, submit
from smallbatch.pipeline.cluster.board import FINAL, Board, Task
from tests.project import UNTRACKED


class Here:
    """A scheduler; see :class:`~smallbatch.pipeline.cluster.board.Scheduler`."""

    def __init__(self, board: Board, compute: ComputeConfig) -> None:
        self.board = board

    def submit(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            with (self.board.folder_of(task.key) / "log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-c", PROGRAM, str(self.board.file_of(task)),
                     str(self.board.folder_of(task.after) / "state.json") if task.after else ""],
                    stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            self.board.set_job(task.key, {"pid": process.pid})

    def refresh(self) -> None:
        for task in self.board.tasks():
            state, job = self.board.state(task.key), self.board.job(task.key)
            if state and job and state.status not in FINAL and not _lives(job["pid"]):
                state = self.board.state(task.key) or state  # it may just have ended
                if state.status not in (*FINAL, "stopped"):
                    self.board.set_state(task.key, state.now(status="lost", message="no process"))

    def cancel(self, keys: Collection[str]) -> None:
        for key in keys:
            if (job := self.board.job(key)) and _lives(job["pid"]):
                process = psutil.Process(job["pid"])
                process.terminate()
                os.killpg(process.pid, signal.SIGCONT)  # a test may have stopped it
                process.wait(20)
            if state := self.board.state(key):
                self.board.set_state(key, state.now(status="cancelled"))


# Waits for the column before it, as a scheduler sees to.
PROGRAM = """
import json, sys, time
from pathlib import Path
while sys.argv[2] and json.loads(Path(sys.argv[2]).read_text())["status"] != "done":
    time.sleep(0.1)
sys.argv = ["smallbatch", "work", sys.argv[1]]
from smallbatch.__main__ import main
main()
"""


def _lives(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def shim(folder: Path, *, tracked: bool) -> dict[str, str]:
    """An environment in which `smallbatch` is this program, and DVC is found beside it.

    Args:
        folder: Where the program is written.
        tracked: Whether MLflow is told of trainings.
    """
    folder.mkdir()
    program = folder / "smallbatch"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P {Path(__file__)} "$@"\n')
    program.chmod(0o755)
    root = Path(__file__).parents[3]
    beside = [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    paths = [os.environ.get("PYTHONPATH", "").split(os.pathsep)[0] or str(root / "src"), str(root)]
    paths += [] if tracked else [str(UNTRACKED)]
    return {**kept, "PATH": os.pathsep.join(beside), "PYTHONPATH": os.pathsep.join(paths)}


if __name__ == "__main__":
    from smallbatch.__main__ import main

    submit.scheduler_of = elsewhere.scheduler_of = lambda board, compute: Here(board, compute)
    main()
