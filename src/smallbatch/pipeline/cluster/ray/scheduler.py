"""Submits columns to a Ray cluster, by a keeper that goes on when this process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from smallbatch import private
from smallbatch.errors import UserError, first_line
from smallbatch.pipeline.child import environment
from smallbatch.pipeline.cluster.board import FINAL, State
from smallbatch.pipeline.cluster.ray.connect import gone, why

if TYPE_CHECKING:
    from smallbatch.config.params import ComputeConfig
    from smallbatch.pipeline.cluster.board import Board, Task

NOTE, LOG, LOCK = "keeper.json", "keeper.log", "keeper.lock"
_CONNECT_S = 90.0
_POLL_S = 0.1
_MODULE = "smallbatch.pipeline.cluster.ray.keeper"
_NOT_FOR_NODES = ("MLFLOW_", "DVC_")
_started: list[subprocess.Popen[bytes]] = []  # of this process; they outlive it


class Ray:
    """See :class:`~smallbatch.pipeline.cluster.board.Scheduler`.

    Args:
        board: The project's, which is the working folder.
        compute: The settings.
    """

    def __init__(self, board: Board, compute: ComputeConfig) -> None:
        self._board, self._address = board, compute.ray.address

    def submit(self, tasks: Sequence[Task]) -> None:
        """See `Scheduler`: the keeper finds them on the board."""
        try:
            self._submit({task.key for task in tasks})
        except UserError as error:  # nobody carries them out
            for task in tasks:
                state = (self._board.state(task.key) or State(task.number)).now(status="lost")
                self._board.set_state(task.key, replace(state, message=first_line(error)))
            raise

    def _submit(self, keys: Collection[str]) -> None:
        if find_spec("ray") is None:
            raise UserError(
                "compute.cluster: found ray, which is not installed here; allowed after "
                '`pip install "smallbatch-study[ray]"`'
            )
        if keeper_runs(self._board):
            asked = read_note(self._board).get("asked")
            if asked == self._address:
                return
            if self._others_under_way(keys):
                raise UserError(
                    f"compute.ray.address: found {self._address}, while columns of this project "
                    f"are trained on {asked}; `smallbatch cancel` ends them"
                )
            (self._board.folder / LOCK).unlink()  # without which the keeper ends
        former = read_note(self._board)
        try:
            self._start()
        except UserError as error:
            if former.get("asked") == self._address and (said := _gone(former)):
                raise UserError(said) from error
            raise

    def _others_under_way(self, keys: Collection[str]) -> bool:
        others = [task for task in self._board.tasks() if task.key not in keys]
        states = [self._board.state(task.key) for task in others if task.cluster == "ray"]
        return any(state and state.status in ("queued", "running") for state in states)

    def refresh(self) -> None:
        """See `Scheduler`: without a keeper nothing goes on."""
        if keeper_runs(self._board):
            return
        note = read_note(self._board)
        message = note.get("message") or _gone(note)
        message = message or f"the keeper ended; {self._board.folder / LOG} says why"
        for task in self._board.tasks():
            state = self._board.state(task.key) or State(task.number)
            if task.cluster == "ray" and state.status not in (*FINAL, "lost", "stopped"):
                self._board.set_state(task.key, state.now(status="lost", message=message))

    def cancel(self, keys: Collection[str]) -> None:
        """See `Scheduler`: the keeper sees it on the board."""
        for key in keys:
            if state := self._board.state(key):
                self._board.set_state(key, state.now(status="cancelled", message=""))

    def _start(self) -> None:
        folder = self._board.folder
        for name in (NOTE, LOG):
            (folder / name).unlink(missing_ok=True)
        file = private.open_shared(folder / LOG, os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(file, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(folder), self._address],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=_without_secrets(), start_new_session=True,
            )  # fmt: skip
        _started.append(process)
        try:
            self._wait(process)
        except BaseException:  # an interruption, too
            process.kill()
            process.wait()
            raise

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        """Return when a keeper is connected."""
        folder = self._board.folder
        until = time.monotonic() + _CONNECT_S
        while time.monotonic() < until:
            note = read_note(self._board)
            if note.get("status") == "connected":
                return
            if note.get("status") == "failed":
                raise UserError(str(note.get("message")))
            said = (folder / LOG).read_text(errors="replace")
            reason = why(said, self._address)
            if reason is None and process.poll() is not None:
                reason = f"compute.ray.address: {self._address}: {_last(said)}"
            if reason is not None:
                raise UserError(reason)
            time.sleep(_POLL_S)
        raise UserError(
            f"compute.ray.address: {self._address}: no answer within {_CONNECT_S:.0f} s; "
            f"{folder / LOG} has what Ray says"
        )


def _without_secrets() -> dict[str, str]:
    """The keeper's environment, which the nodes of a cluster of this machine alone have, too.

    Of MLflow, to which whoever waits tells the runs, and of a `dvc` that ends before they do, it
    has nothing.
    """
    return {k: v for k, v in environment().items() if not k.startswith(_NOT_FOR_NODES)}


def _gone(note: Mapping[str, Any]) -> str | None:
    """What to say where a keeper had a cluster that does not answer any more."""
    address = str(note.get("address"))
    if note.get("status") not in ("connected", "ended") or ":" not in address:
        return None
    return gone(address)


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["the keeper ended without a word"])[-1][:300]


def keeper_runs(board: Board) -> bool:
    """Whether a keeper of this project runs: it holds a lock as long as it lives."""
    file = hold(board)
    if file is None:
        return True
    os.close(file)
    return False


def hold(board: Board) -> int | None:
    """The keeper's lock; None where another has it."""
    return private.hold(private.open_lock(board.folder / LOCK))


def is_held(board: Board, file: int) -> bool:
    """Whether a keeper's lock is still that of the board, which may have been removed."""
    try:
        return os.path.samestat(os.fstat(file), (board.folder / LOCK).stat())
    except FileNotFoundError:
        return False


def read_note(board: Board) -> dict[str, Any]:
    """What the keeper says of itself; empty where there is nothing."""
    with suppress(OSError, ValueError):
        found = json.loads(private.read_shared(board.folder / NOTE))
        return found if isinstance(found, dict) else {}
    return {}
