"""Starts a worker process for each GPU, which sees that one alone.

CUDA cannot be used in a fork of a process that has used it, so these processes begin anew. This
module is the first that they import: before torch, which takes seconds.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any

from smallbatch.machine import VISIBLE_GPUS
from smallbatch.processes import live_and_die_with

if TYPE_CHECKING:
    from smallbatch.execution.chunks import Job
    from smallbatch.execution.following import Shared

_ALIGNED = 64  # bytes
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start_workers(
    context: SpawnContext, job: Job, planned: list[list[str]], shared: Shared
) -> list[SpawnProcess]:
    """Start a worker for each device of a job, but no more than there are chunks, or as ranks."""
    parcel, workers = Parcel((job, planned)), list[SpawnProcess]()
    devices = job.devices if job.ranks > 1 else job.devices[: len(planned)]
    for rank, device in enumerate(devices):
        arguments = (parcel, shared, os.getpid(), rank)
        workers.append(
            context.Process(target=_begin, args=arguments, daemon=not job.placement.decoders)
        )
        with _seeing(device), _signals_held():
            workers[-1].start()
    parcel.close()
    return workers


def _begin(parcel: Parcel, shared: Shared, parent: int, rank: int) -> None:
    live_and_die_with(parent)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    from smallbatch.execution.workers import work

    job, planned = parcel.open()
    work(job, None, planned, shared, rank)


@contextmanager
def _signals_held() -> Generator[None, None, None]:
    """Processes that are started within this block hold signals back until they ignore them.

    Python would answer Ctrl-C with a traceback while it starts. For this process they only wait.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _seeing(device: str) -> Generator[None, None, None]:
    """Within this block processes that are started see one GPU; this process saw its own before."""
    before = os.environ.get(VISIBLE_GPUS)
    os.environ[VISIBLE_GPUS] = device
    try:
        yield
    finally:
        if before is None:
            del os.environ[VISIBLE_GPUS]
        else:
            os.environ[VISIBLE_GPUS] = before


class Parcel:
    """An object for processes that are spawned; the arrays in it are in memory once for all.

    They lie in a file without a name, which is gone with the last process that has it open.
    """

    def __init__(self, content: object) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self._pickled = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        self._spans: list[tuple[int, int]] = []
        self._file = os.memfd_create("smallbatch")
        with os.fdopen(self._file, "wb", closefd=False) as file:
            for buffer in buffers:
                view = buffer.raw()
                start = file.seek(-(-file.tell() // _ALIGNED) * _ALIGNED)
                file.write(view)
                self._spans.append((start, start + view.nbytes))

    def close(self) -> None:
        """This process needs it no longer."""
        os.close(self._file)

    def open(self) -> Any:
        """The object, in a process that got the parcel; what it changes, others do not see."""
        mapped = memoryview(mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY))
        arrays = [mapped[start:end] for start, end in self._spans]
        return pickle.loads(self._pickled, buffers=arrays)  # noqa: S301 - of the parent's memory

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_file": DupFd(self._file)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"_file": state["_file"].detach()})
