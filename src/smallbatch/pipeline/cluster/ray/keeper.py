"""The process that is a Ray cluster's driver for a project: it ends when no task is left.

`python -m smallbatch.pipeline.cluster.ray.keeper BOARD ADDRESS`, started by `scheduler`. It is one
of its own because the work goes on when whoever submitted it has left, and because Ray ends its
driver when the cluster's head is gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallbatch import durable
from smallbatch.config.params import parse_compute
from smallbatch.errors import UserError, first_line
from smallbatch.pipeline.cluster.board import FINAL, Board
from smallbatch.pipeline.cluster.ray import shipped
from smallbatch.pipeline.cluster.ray.connect import address_of, connected, gone, why
from smallbatch.pipeline.cluster.ray.files import Busy, column_of
from smallbatch.pipeline.cluster.ray.jobs import Job, Jobs
from smallbatch.pipeline.cluster.ray.offers import Offers
from smallbatch.pipeline.cluster.ray.reasons import WRONG, lost, wrong
from smallbatch.pipeline.cluster.ray.resources import Resources
from smallbatch.pipeline.cluster.ray.scheduler import NOTE, hold, is_held, read_note

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from smallbatch.config.params import ComputeConfig
    from smallbatch.pipeline.cluster.board import Task

IDLE_S = 10.0
"""Seconds without a task after which a keeper ends."""
_POLL_S = 0.25
_BUSY_S = 5.0
_SILENCE_S = 20.0  # of the inbox, which has little to do; less than Ray waits for its head
_NEWS_S = 1.0
_NODES = 100  # whose news each second an inbox takes easily
_FRESH_NS = 10**8  # a folder's time of change is no finer than a few milliseconds


class _Replaced(Exception):  # noqa: N818
    """The board was removed, or another keeper's address was asked for."""


class Keeper:
    """Hands tasks of a board to a Ray cluster until none is left.

    Args:
        board: The board of the project that is the working folder.
        ray: Ray's module, connected.
        asked: `compute.ray.address` of the tasks that it takes.
        held: The keeper's lock of the board.
    """

    def __init__(self, board: Board, ray: Any, asked: str, held: int) -> None:
        self._board, self._ray, self._asked, self._held = board, ray, asked, held
        self._jobs = Jobs(board)
        self._waiting: dict[str, tuple[Task, Job | None]] = {}
        self._later: dict[str, float] = {}
        self._seen: dict[str, int] = {}
        self._resources = Resources(ray)
        # On the head, without which nothing goes on anyway.
        ray.cloudpickle.register_pickle_by_value(shipped)
        lasts = {"max_restarts": -1, "max_task_retries": -1}
        place = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
        self._inbox = ray.remote(shipped.Inbox).options(**lasts, **place).remote()
        self._carry_out = ray.remote(shipped.carry_out)
        self._offers = Offers(ray, self._inbox)
        folder = Path.cwd()
        project = f"{platform.node()}:{folder}"
        self._common = {
            "folder": str(folder),
            "project": hashlib.sha256(project.encode()).hexdigest()[:12],
        }

    def run(self, leave: Callable[[], None]) -> None:
        """Return when there has been no task for a while, or another keeper has the board.

        Args:
            leave: Called in the first case, while the board is locked: who submits afterwards
                finds no keeper.
        """
        try:
            self._run(leave)
        except _Replaced:
            for job in self._jobs.running.values():
                if job.ref is not None:
                    self._ray.cancel(job.ref, force=True)

    @contextmanager
    def _locked(self) -> Generator[None]:
        with self._board.lock():
            if not is_held(self._board, self._held):
                raise _Replaced
            yield

    def _run(self, leave: Callable[[], None]) -> None:
        idle = time.monotonic()
        while True:
            with self._locked():
                self._look()
                if self._waiting or self._jobs.running:
                    idle = time.monotonic()
                elif time.monotonic() > idle + IDLE_S:
                    leave()
                    return
                begun = self._begin()
            self._call("admit", {it.task.key: [it.task.number, it.attempt]
                                 for it in self._jobs.running.values()})  # fmt: skip
            for job in begun:
                self._hand_out(job)
            came = self._take()
            self._settle(0 if came else _POLL_S)

    def _call(self, method: str, *words: Any) -> Any:
        return self._ray.get(getattr(self._inbox, method).remote(*words), timeout=_SILENCE_S)

    def _take(self) -> bool:
        """Read what nodes sent, and lay out what they ask for; returns whether there was any."""
        letters, wanted = self._call("take")
        with self._locked():
            for head, body in letters:
                self._jobs.read(head, body)
            for job in self._jobs.faulty():
                if job.ref is not None:
                    self._ray.cancel(job.ref, force=True)  # and its end says why
        for name in wanted:
            self._offers.lay_out(name)
        return bool(letters)

    def _look(self) -> None:
        """Find what changed on the board since."""
        for key, task in self._changed():
            job, former = self._jobs.running.get(key), self._waiting.get(key)
            number = task.number if task and self._is_open(task) else None
            if job and number != job.task.number:
                self._drop(job)
            if former and number != former[0].number:
                del self._waiting[key]
            known = (job and job.task.number, former and former[0].number)
            if task and number is not None and number not in known:
                self._waiting[key] = task, None

    def _is_open(self, task: Task) -> bool:
        """Whether a task is to be trained here, and neither ended nor cancelled."""
        state, job = self._board.state(task.key), self._jobs.running.get(task.key)
        if state is None or state.number != task.number or task.cluster != "ray":
            return False
        with suppress(*WRONG):  # one that cannot be read fails when it is its turn
            if _compute(task).ray.address != self._asked:
                return False
        # What was lost is submitted again by whoever waits for it, perhaps with other settings.
        own = job is not None and (job.task.number, job.attempt) == (state.number, state.attempt)
        return state.status == "queued" or (state.status == "running" and own)

    def _changed(self) -> Iterator[tuple[str, Task | None]]:
        with suppress(FileNotFoundError), os.scandir(self._board.folder) as entries:
            for entry in sorted(entries, key=lambda it: it.name):
                if not entry.is_dir(follow_symlinks=False):
                    continue
                moment = entry.stat().st_mtime_ns
                if self._seen.get(entry.name) == moment:
                    continue
                if time.time_ns() - moment > _FRESH_NS:
                    self._seen[entry.name] = moment
                with suppress(UserError):  # no task's folder
                    task = self._board.task(entry.name)
                    yield entry.name, task if task and task.key == entry.name else None

    def _drop(self, job: Job) -> None:
        """End an attempt that was cancelled, or whose task was submitted again."""
        del self._jobs.running[job.task.key]
        job.receiver.clear()
        self._offers.withdraw(job.offered)
        if job.ref is not None:
            self._ray.cancel(job.ref, force=True)

    def _begin(self) -> list[Job]:
        """Begin attempts, a few more than there is room for: the rest waits here."""
        begun: list[Job] = []
        for key, (task, former) in [*self._waiting.items()]:
            if (compute := self._readable(task)) is None:
                continue
            slots = self._resources.slots(compute)
            if len(self._jobs.running) >= max(2, 2 * slots):
                break
            if time.monotonic() < self._later.get(key, 0.0):
                continue
            try:
                if not self._may_begin(task):
                    continue
                column = column_of(task)
                number = column.take_over()
                offered = self._offers.of(task, column)
                job = self._jobs.begin(task, column, former, offered, number)
                if not slots:
                    self._jobs.say(job, "no node of the cluster has as many cores or GPUs")
                begun.append(job)
                del self._waiting[key]
            except Busy as busy:
                self._put_off(task, busy)
            except WRONG as error:
                self._fail(task, wrong(task, error))
        return begun

    def _readable(self, task: Task) -> ComputeConfig | None:
        """The settings of a task; None where they cannot be read, and it failed."""
        try:
            return _compute(task)
        except WRONG as error:
            self._fail(task, wrong(task, error))
            return None

    def _put_off(self, task: Task, busy: Busy) -> None:
        """Try again later to begin a task whose column is trained in the project itself."""
        self._later[task.key] = time.monotonic() + _BUSY_S
        state, message = self._board.state(task.key), first_line(busy)
        if state and state.message != message:
            self._board.set_state(task.key, state.now(message=message))

    def _may_begin(self, task: Task) -> bool:
        """Whether the column that it comes after is complete; if that never will be, it fails."""
        state = self._board.state(task.after) if task.after else None
        if state is None or state.status == "done":
            return True
        if state.status in FINAL:
            self._fail(task, f"{task.after}, after which it comes, {state.status}")
        return False

    def _fail(self, task: Task, message: str) -> None:
        self._waiting.pop(task.key, None)
        if state := self._board.state(task.key):
            self._board.set_state(task.key, state.now(status="failed", message=message))

    def _hand_out(self, job: Job) -> None:
        task, compute = replace(job.task, base_lrs=job.column.base_lrs), _compute(job.task)
        cpus, gpus = self._resources.of(compute)
        if compute.workers == "auto" and not gpus:
            settings = {**task.params.get("compute", {}), "workers": cpus}
            task = replace(task, params={**task.params, "compute": settings})
        message = self._common | {
            "task": asdict(task),
            "attempt": job.attempt,
            "cpus": cpus,
            "gpus": gpus,
            "data": self._offers.sizes(task),
            "images": self._offers.images(task),
            "offers": job.offered,
            "seconds": max(_NEWS_S, self._resources.nodes / _NODES),
        }
        job.ref = self._carry_out.options(
            num_cpus=cpus, num_gpus=gpus, max_retries=0, name=task.key
        ).remote(self._inbox, json.dumps(message))

    def _settle(self, wait: float) -> None:
        """See which attempts have ended, and begin those anew that need it."""
        jobs = {it.ref: it for it in self._jobs.running.values() if it.ref is not None}
        if not jobs:
            time.sleep(wait)
            return
        ended, _ = self._ray.wait([*jobs], num_returns=len(jobs), timeout=wait)
        if not ended:
            return
        # What their nodes sent before that comes first; of others there may always be more.
        for _ in range(shipped.MOST_TAKES):
            if not self._take():
                break
        with self._locked():
            for ref in ended:
                job, result, trouble = jobs[ref], None, ""
                try:
                    result = self._ray.get(ref)
                except self._ray.exceptions.RayError as error:
                    trouble = lost(error)
                self._offers.withdraw(job.offered)
                if self._jobs.end(job, result, trouble):
                    self._waiting[job.task.key] = job.task, job


def _compute(task: Task) -> ComputeConfig:
    return parse_compute(task.params.get("compute", {}), task.origin)


def main(board: Board, asked: str) -> None:
    """Keep a board's tasks; see the module."""
    address: str | None = asked
    held = hold(board)

    def note(status: str, message: str = "") -> None:
        if held is not None and not is_held(board, held):
            return  # it is another's
        content = {"pid": os.getpid(), "asked": asked, "address": address or "this machine",
                   "status": status, "message": message}  # fmt: skip
        durable.write(board.folder / NOTE, f"{json.dumps(content, indent=1)}\n".encode())

    if held is None:
        note("failed", f"{board.folder}: another keeper runs")
        return
    try:
        address = address_of(asked)
        with connected(address) as ray:
            keeper = Keeper(board, ray, asked, held)
            note("connected")

            def leave() -> None:
                note("ended")
                os.close(held)

            keeper.run(leave)
    except UserError as error:
        note("failed", first_line(error))
    except Exception as error:  # noqa: BLE001 - of Ray there are many kinds
        was = read_note(board).get("status")
        reason = why(f"{type(error).__name__}: {error}", asked)
        if was == "connected":
            said = f"Ray at {address or 'this machine'} ended its keeper: {first_line(error)}"
            note("ended", (gone(address) if address else None) or said)
        else:
            note("failed", reason or f"compute.ray.address: {asked}: {first_line(error)}")
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # Ray's own way out waits for its head


if __name__ == "__main__":
    main(Board(Path(sys.argv[1])), sys.argv[2])
