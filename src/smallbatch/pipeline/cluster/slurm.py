"""Slurm: columns as elements of job arrays, in a project folder that all nodes share."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from smallbatch import private
from smallbatch.errors import INTERRUPTED, OUT_OF_TIME, UserError, shown
from smallbatch.modules import PACKAGE
from smallbatch.pipeline.cluster.board import FINAL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from smallbatch.config.params import ComputeConfig
    from smallbatch.pipeline.cluster.board import Board, State, Status, Task

WORKER = (sys.executable, "-P", "-m", "smallbatch", "work")
LOG, SLURM_LOG = "log", "slurm.log"
"""What a worker says, in its task's folder; what Slurm itself says of all jobs, on the board."""

_COMMAND_S = 120.0  # sbatch tries again for a while if Slurm cannot take a job at the moment
_LAG_S = 30.0  # until what a node wrote last can be seen through a shared file system's cache
_RETRY_S = 30.0  # each question to a controller that is away takes some ten seconds
_ACTIVE = ("queued", "running", "stopped")
# The variables that Slurm's commands and jobs get of this process's: among others are secrets.
_TO_JOBS = ("HOME", "LANG", "LC_", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SBATCH_", "SHELL",
            "SLURM_", "USER")  # fmt: skip
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
_OVER = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL",
         "DEADLINE", "OUT_OF_MEMORY")  # fmt: skip
_NEVER = "DependencyNeverSatisfied"
_UNKNOWN_JOB = "Invalid job id specified"

# TERM comes before the time limit, at preemption and by scancel. A worker that keeps its progress
# at TERM, or was too young to, goes on later: the job goes back into the queue, unless Slurm is
# ending it already, as then it is not RUNNING. A trap interrupts `wait`, hence the loop.
_SCRIPT = """\
#!/bin/bash
cd -- {project} || exit 1
tasks=({tasks})
task=${{tasks[SLURM_ARRAY_TASK_ID]}}
exec >>"${{task%/*}}/{log}" 2>&1
{pythonpath}
told='' worker=''
trap 'told=1; [[ -z $worker ]] || kill -TERM "$worker"' TERM
{worker} "$task" &
worker=$!
while kill -0 "$worker" 2>/dev/null; do wait "$worker"; done
wait "$worker"
code=$?
if [[ $code == {interrupted} || $code == {out_of_time} || $told && $code == 143 ]]; then
    job=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
    if [[ $(squeue --noheader --jobs="$job" --format=%T) == RUNNING ]]; then
        scontrol requeue "$job" && exec sleep 60
    fi
fi
exit "$code"
"""


class _Seen(NamedTuple):
    """What Slurm knows of a job."""

    state: str
    reason: str


class Slurm:
    """Has Slurm carry tasks out; see :class:`~pipeline.cluster.board.Scheduler`.

    Args:
        board: The board.
        compute: The params' `compute`, for its options of sbatch.
    """

    def __init__(self, board: Board, compute: ComputeConfig) -> None:
        self._board, self._options = board, compute.slurm.options
        self._away_until = 0.0
        self._warned = False

    def submit(self, tasks: Sequence[Task]) -> None:
        """Submit an array of all tasks that can start, and one of those after each other task.

        Raises:
            UserError: Slurm does not take them. Some may have been submitted: `refresh` tells.
        """
        most = _most_of_an_array()
        waiting = {task.key: task for task in tasks}
        while waiting:
            arrays: dict[str | None, list[Task]] = {}
            for task in [it for it in waiting.values() if it.after not in waiting]:
                arrays.setdefault(self._dependency(task), []).append(task)
                del waiting[task.key]
            for dependency, array in arrays.items():
                for first in range(0, len(array), most):
                    self._submit(array[first : first + most], dependency)

    def refresh(self) -> None:
        """See :class:`~pipeline.cluster.board.Scheduler`; if Slurm is away, nothing changes."""
        if time.monotonic() < self._away_until:
            return
        tasks = {it.key: it for it in self._board.tasks() if it.cluster == "slurm"}
        former = {key: self._board.state(key) for key in tasks}
        states = {key: it for key, it in former.items() if it and it.status not in FINAL}
        jobs = {key: self._board.job(key) for key in states}
        try:
            seen = _queue({job["job"] for job in jobs.values() if job})
        except UserError as error:
            if not self._warned:
                print(f"warning: {error}; asking again every {_RETRY_S:.0f} s", file=sys.stderr)
            self._warned, self._away_until = True, time.monotonic() + _RETRY_S
            return
        self._warned = False
        for key, state in states.items():
            found = _of(jobs[key], seen)
            if found is None or found.state in _OVER:
                self._end(tasks[key], jobs[key], found)
            else:
                self._go_on(key, state, jobs[key], found)

    def cancel(self, keys: Collection[str]) -> None:
        """See :class:`~pipeline.cluster.board.Scheduler`.

        Raises:
            UserError: Slurm cannot be reached.
        """
        states = {key: self._board.state(key) for key in keys}
        active = {key: it for key, it in states.items() if it and it.status not in FINAL}
        jobs = [job for key in active if (job := self._board.job(key))]
        self._set_cancelled(active)  # first, so that a worker that is told to end knows why
        try:
            if jobs:
                _call("scancel", "--quiet", *map(_element, jobs))
        except UserError:
            for key, state in active.items():
                self._board.set_state(key, state)
            raise
        self._set_cancelled(active)  # again, as a worker may have written at that moment

    def _set_cancelled(self, keys: Iterable[str]) -> None:
        for key in keys:
            state = self._board.state(key)
            if state and state.status not in FINAL:
                self._board.set_state(key, state.now(status="cancelled", message=""))

    def _dependency(self, task: Task) -> str | None:
        """The element that must have succeeded before a task starts, if it is still to end."""
        if task.after is None:
            return None
        state, job = self._board.state(task.after), self._board.job(task.after)
        return _element(job) if state and state.status in _ACTIVE and job else None

    def _submit(self, tasks: Sequence[Task], dependency: str | None) -> None:
        files = [self._board.file_of(task) for task in tasks]
        said_by_slurm = self._board.folder / SLURM_LOG
        for log in (said_by_slurm, *(file.with_name(LOG) for file in files)):
            private.refuse_links_of_others(log)
        command = [
            "sbatch",
            f"--job-name=smallbatch-{Path.cwd().name}",
            "--requeue",
            "--signal=B:TERM@60",
            *self._options,
            # Of these no option takes the place. ALL is what `_call` leaves of the variables; for
            # NONE, Slurm would start a login on the node, which may take long or fail.
            "--export=ALL",
            "--parsable",
            f"--array=0-{len(tasks) - 1}",
            f"--chdir={Path.cwd()}",
            f"--output={said_by_slurm}",
            "--open-mode=append",
        ]
        if dependency is not None:
            command += [f"--dependency=afterok:{dependency}", "--kill-on-invalid-dep=yes"]
        said = _call(*command, script=_script(files))
        number = said.strip().partition(";")[0]
        if not number.isdecimal():
            raise UserError(f"sbatch: found {shown(said.strip())[:200]!r}, wanted a job's number")
        for index, task in enumerate(tasks):
            self._board.set_job(task.key, {"job": number, "index": index})

    def _go_on(self, key: str, state: State, job: dict[str, Any], seen: _Seen) -> None:
        """Of a job that waits, or is about to, say so and why; of others their worker tells."""
        if "over" in job:  # Slurm put it back into the queue
            self._board.set_job(key, {"job": job["job"], "index": job["index"]})
        if seen.state not in _WAITING and state.status != "stopped":
            return
        message = "waits in Slurm" if seen.reason == "None" else f"waits in Slurm: {seen.reason}"
        if (state.status, state.message) != ("queued", message):
            self._board.set_state(key, state.now(status="queued", message=message))

    def _end(self, task: Task, job: dict[str, Any], seen: _Seen | None) -> None:
        """Of a job that is no more, say what became of it, if its worker did not."""
        state = self._board.state(task.key)  # anew: it may have ended since
        if state is None or state.status in FINAL or state.status == "lost":
            return
        if job and time.time() < job.get("over", float("inf")) + _LAG_S:
            if "over" not in job:
                self._board.set_job(task.key, {**job, "over": time.time()})
            return
        status, message = self._verdict(task, state, job, seen)
        if (status, message) != (state.status, state.message):
            self._board.set_state(task.key, state.now(status=status, message=message))

    def _verdict(
        self, task: Task, state: State, job: dict[str, Any], seen: _Seen | None
    ) -> tuple[Status, str]:
        if not job:
            return "lost", "it was not given to Slurm"
        if seen and seen.reason == _NEVER:
            source = self._board.state(task.after) if task.after else None
            failed = source and source.status in ("failed", "cancelled")
            status = source.status if source and failed else "lost"
            return status, f"{task.after}, which it comes after: {status}"
        if seen and seen.state == "CANCELLED":
            return "cancelled", "cancelled in Slurm"
        if state.status == "stopped":  # with its progress: whoever waits for it submits it again
            return state.status, state.message
        element = _element(job)
        if seen is None:
            return "lost", f"Slurm no longer knows its job {element}"
        logs = (self._board.folder_of(task.key) / LOG, self._board.folder / SLURM_LOG)
        there = " and ".join(str(log) for log in logs if log.exists())
        see = f"; see {there}" if there else ""
        return "lost", f"its job {element} ended in Slurm: {seen.state} {seen.reason}{see}"


def _script(files: Iterable[Path]) -> str:
    """What each element of an array runs: it finds its task's file by its index."""
    pythonpath = ""
    if PACKAGE.parent.name not in ("site-packages", "dist-packages"):
        place = shlex.quote(str(PACKAGE.parent))
        pythonpath = f"export PYTHONPATH={place}${{PYTHONPATH:+:$PYTHONPATH}}"
    return _SCRIPT.format(
        project=shlex.quote(str(Path.cwd())),
        tasks=shlex.join(map(str, files)),
        log=LOG,
        pythonpath=pythonpath,
        worker=shlex.join(WORKER),
        interrupted=INTERRUPTED,
        out_of_time=OUT_OF_TIME,
    )


def _of(job: dict[str, Any], seen: Mapping[str, _Seen]) -> _Seen | None:
    if not job:
        return None
    # Of an array that was cancelled before any element of it ran, there is one line alone.
    return seen.get(_element(job)) or seen.get(f"{job['job']}_N/A")


def _element(job: dict[str, Any]) -> str:
    return f"{job['job']}_{job['index']}"


def _most_of_an_array() -> int:
    """How many elements an array may have: their indices are below the site's MaxArraySize."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call("scontrol", "show", "config"), re.M)
    if not found or found.group(1) == "0":
        raise UserError("Slurm: found no MaxArraySize above 0, but columns are job arrays")
    return int(found.group(1))


def _queue(numbers: Collection[str]) -> dict[str, _Seen]:
    """What Slurm knows of the elements of arrays; it forgets jobs some minutes after their end."""
    if not numbers:
        return {}
    try:
        said = _call(
            "squeue", "--noheader", "--array", "--states=all",
            f"--jobs={','.join(sorted(numbers))}", "--format=%F|%K|%T|%r",
        )  # fmt: skip
    except UserError as error:
        if _UNKNOWN_JOB in str(error):  # says so if it is asked of one job alone
            return {}
        raise
    lines = [line.split("|", 3) for line in said.splitlines() if line.count("|") >= 3]
    return {f"{job}_{index}": _Seen(state, reason) for job, index, state, reason in lines}


def _call(program: str, *arguments: str, script: str = "") -> str:
    """What a command of Slurm's says.

    Raises:
        UserError: It failed; its own message in one line.
    """
    environment = {name: it for name, it in os.environ.items() if name.startswith(_TO_JOBS)}
    try:
        done = subprocess.run(
            [program, *arguments], input=script, env=environment, check=True, timeout=_COMMAND_S,
            capture_output=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError(f"compute.cluster: found slurm, but no {program} on PATH") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{program}: no answer from Slurm within {_COMMAND_S:.0f} s") from None
    except subprocess.CalledProcessError as error:
        lines = [line.removeprefix(f"{program}: ") for line in error.stderr.strip().splitlines()]
        said = "; ".join(lines) or f"exit status {error.returncode}"
        raise UserError(f"{program}: {shown(said)[:300]}") from None
    return done.stdout
