"""The process that started workers: it tells what they tell, and ends with them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from multiprocessing.context import BaseContext
from queue import Empty
from typing import TYPE_CHECKING, Any, NamedTuple

from smallbatch.config.base_lr import format_base_lr
from smallbatch.errors import TakenOver, UserError, WorkerLost
from smallbatch.execution.ranks import Meeting
from smallbatch.execution.watch import GRACE_S, HINT

if TYPE_CHECKING:
    from smallbatch.execution.chunks import Job
    from smallbatch.protocol.outcome import Row
    from smallbatch.protocol.run import Run


def less(job: Job) -> str:
    """What to do if memory runs out, in words."""
    run, micro = job.column[0], job.placement.method.micro_batch
    size = micro or run.batch_size
    if job.placement.engine == "loop" and size > 1:
        text = f"set compute.micro_batch below {size} and run the same command again"
        if micro is None and run.settings.norm.startswith("batch"):
            text += f", or leave out batch size {size} where batch norm needs all of a batch"
        return text
    return "set compute.memory lower; the same command then goes on"


class News(NamedTuple):
    """What is told of a run: when it began, each epoch's values, its outcome."""

    begun: Callable[[Run, datetime], None]
    epoch: Callable[[Run, Row], None]
    done: Callable[[Run, str], None]


class Shared(NamedTuple):
    """What this process and its workers share: chunks taken, whether to stop, a queue of events.

    And where ranks meet, if the workers are ranks.
    """

    taken: Any
    stop: Any
    events: Any
    meeting: Meeting

    @classmethod
    def by(cls, context: BaseContext) -> Shared:
        """For processes that are started in this way."""
        return cls(context.Value("l", 0), context.RawValue("b", 0), context.Queue(), Meeting())


def follow(job: Job, workers: Sequence[Any], shared: Shared, news: News) -> int:
    """Tell what the workers tell until all runs have ended; returns their peak memory in bytes.

    Of ranks the first keeps all that is kept. The others wait for it, and end with it.
    """
    runs, peak = {run.hash: run for run in job.column}, 0
    try:
        for kind, name, value in _events(job, workers, shared):
            if kind == "done":
                outcome, memory = value
                peak = max(peak, memory)
                news.done(runs[name], outcome)
            elif kind in News._fields:
                getattr(news, kind)(runs[name], value)
            else:
                if kind == "lost":
                    job.watch.check()  # ranks that are stopped lose each other
                raise _error(kind, runs[name], value)
    except TakenOver:
        _kill(workers)  # another process now writes the files that they would write
        raise
    except (UserError, RuntimeError):
        if job.ranks > 1:
            _kill(workers)  # without one of them no other gets on
        raise
    finally:
        shared.stop.value = 1  # after an error, the other workers keep their progress and end
        deadline = time.monotonic() + GRACE_S
        for worker in _keeping(job, workers):
            worker.join(max(0.0, deadline - time.monotonic()))
        _kill(workers)
        for worker in workers:
            worker.join()
        shared.meeting.close()
    return peak


def _kill(workers: Sequence[Any]) -> None:
    for worker in workers:
        worker.kill()


def _error(kind: str, run: Run, value: str) -> Exception:
    """What went wrong with a run, by the kind of a worker's message."""
    known = {"overtaken": TakenOver, "refused": UserError, "lost": WorkerLost}
    if kind in known:
        return known[kind](value)
    title = f"base_lr={format_base_lr(run.base_lr)} seed={run.seed}"
    return RuntimeError(f"training m={run.batch_size} {title} failed:\n{value}")


def _keeping(job: Job, workers: Sequence[Any]) -> Sequence[Any]:
    """The workers with something to lose."""
    return workers[:1] if job.ranks > 1 else workers


def _events(job: Job, workers: Sequence[Any], shared: Shared) -> Iterator[tuple[str, str, Any]]:
    """The messages of the workers, until every missing run has ended.

    Raises:
        WorkerLost: Workers ended before that.
        Stopped: Workers were asked to stop and have ended.
    """
    ends, ready, keeping = len(job.missing), set[int](), _keeping(job, workers)
    while ends:
        job.beat()
        if job.watch.stopping():
            shared.stop.value = 1
            for worker in workers:
                if worker.pid not in ready:
                    worker.kill()  # it still imports torch, and has nothing to lose
        alive = any(worker.is_alive() for worker in keeping)
        failed = [worker.exitcode for worker in workers if worker.exitcode]
        try:
            kind, name, value = shared.events.get(timeout=0.2)
        except Empty:
            if not alive:
                job.watch.check()
            if (failed and not shared.stop.value) or not alive:
                code = failed[0] if failed else 0
                how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
                hint = HINT if code != -signal.SIGKILL else f"if memory ran out, {less(job)}"
                raise WorkerLost(f"a training worker {how}: {hint}") from None
            continue
        if kind == "ready":
            ready.add(value)
            continue
        ends -= kind == "done"
        yield kind, name, value
