"""Measures how fast each method trains a column on this machine, if that saves time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from smallbatch.errors import Stopped, Stopping, UserError, WorkerLost, first_line, shown
from smallbatch.placement.known import (
    alike,
    decided,
    known,
    learn,
    methods,
    name_of,
    note_rough,
    rates_of,
    workload_key,
)
from smallbatch.placement.memory import memory_of, micro_batch_of
from smallbatch.placement.placement import can_stack, resolve_device, workload_of
from smallbatch.placement.workload import Method, Workload, training_flops_of
from smallbatch.speed.agreement import COMPARED, check
from smallbatch.speed.rate import few_updates, measure
from smallbatch.speed.share import taken

if TYPE_CHECKING:
    from smallbatch.config.params import ComputeConfig
    from smallbatch.protocol.column import Column

SHARE = 0.02  # of a column's time that calibration may take,
MOST_SECONDS = {"cpu": 10.0, "cuda": 60.0}  # but never more than this
SECONDS = 0.5  # of measuring one method
# For the least time that a column can take: FLOP/s of one worker that no method exceeds by much,
# and seconds that any update takes. On a GPU: what an H200 reached with ResNet-8, rounded outwards.
FAST = {"cpu": 6e10, "cuda": 4e13}
QUICKEST = {"cpu": 0.0, "cuda": 1e-4}
# For the most time that a measurement can take: FLOP/s that one worker exceeds or nearly reaches;
# other seconds of an update; seconds before the first update; and seconds to compile a model's
# kernels, once on a machine: about thirty kernels, a second each.
SLOW = {"cpu": 1e10, "cuda": 2e12}
DISPATCH = {"cpu": 0.02, "cuda": 0.005}
START = {"cpu": 0.5, "cuda": 1.0}
COMPILE = 30.0


def calibrate(workload: Workload, candidates: Iterable[Method], memory: int | None = None) -> None:
    """Measure the methods that are not measured yet.

    What was measured while other programs took a part of the cores is not kept, and a line says so:
    this process alone has it, as rough rates. A method has rate 0 if it fails while another works,
    or if on a GPU its first update is not that of the loop engine; for the latter, a line says why
    it is left out.

    Raises:
        UserError: The model cannot be built for these images.
        RuntimeError: No method works.
    """
    rates, share = rates_of(workload), 1.0
    rough: dict[str, float] = {}
    failure = None
    for method in candidates:
        if method.key not in rates:
            try:
                if _compared(workload, method):
                    check(workload, method, memory)
                rate = measure(alike(workload), method, seconds=SECONDS, memory=memory)
                (rough if rate.disturbed else rates)[method.key] = rate.images_per_second
                share = min(share, rate.share)
            except Exception as error:  # a compiler's own errors too
                ends = isinstance(error, UserError | Stopping | Stopped)
                if ends and not isinstance(error, WorkerLost):
                    raise
                # Without its traceback, whose frames would keep the memory of the failed attempt.
                rates[method.key], failure = 0.0, error.with_traceback(None)
                failure.__cause__ = failure.__context__ = None
                if _compared(workload, method):
                    _say(f"{workload.key}: {method.key} is left out: {first_line(failure)}")
    if failure is not None and not any((rates | rough).values()):
        raise failure
    learn(rates={workload_key(workload): rates})
    if rough:
        note_rough(workload, rough)
        _say(
            f"{workload.key}: {taken(share)} while it was measured: {', '.join(rough)} will be "
            "measured again"
        )


def cost(workload: Workload, candidates: Iterable[Method], flops: int) -> float:
    """Most seconds that measuring these methods takes; ``flops``: those of a training image."""
    start, candidates = START[workload.device], list(candidates)

    def update(method: Method) -> float:
        runs = workload.workers if method.engine == "loop" else alike(workload).lanes
        images = workload.batch_size * runs / workload.workers
        return DISPATCH[workload.device] + images * flops / SLOW[workload.device]

    # One epoch that is left out, and at least one that is measured.
    updates = 2 * few_updates(workload)
    seconds = sum(start + max(SECONDS, updates * update(method)) for method in candidates)
    compared = [method for method in candidates if _compared(workload, method)]
    if compared:  # one update by each method, and by the loop engine for some of the runs
        seconds += sum(start + update(method) for method in compared)
        seconds += start + COMPARED * update(Method("loop"))
    if any(method.kernels == "triton" and not _compiled(workload, method) for method in compared):
        seconds += COMPILE
    return seconds


def _compared(workload: Workload, method: Method) -> bool:
    """Whether a method's first update is compared with the loop engine's: stacked, on a GPU."""
    return method.engine == "stacked" and workload.device == "cuda"


def _compiled(workload: Workload, method: Method) -> bool:
    """Whether the method's kernels for this model are likely to be compiled on this machine."""
    kind = f"{workload.model} ", f" {workload.precision} "
    rates = known().rates.items()
    return any(
        all(word in key for word in kind) and method.key in methods for key, methods in rates
    )


def least_seconds(workload: Workload, images: int, flops: int) -> float:
    """Fewest seconds that this number of training images, over all runs, can take."""
    arithmetic = images * flops / (FAST[workload.device] * workload.workers)
    return max(
        arithmetic, images / (workload.batch_size * workload.lanes) * QUICKEST[workload.device]
    )


def find_out(
    column: Column, compute: ComputeConfig, rest: Callable[[], object] = lambda: None
) -> None:
    """Measure the methods to train a column, if they are not measured and it pays.

    Args:
        column: The column.
        compute: The settings.
        rest: Called before anything is measured, to wait until this program's other processes rest.

    Raises:
        UserError: The device does not exist, or the model cannot be built for these images.
    """
    if compute.engine != "auto" or len(column.runs) == 1 or column.streamed:
        return
    run, device = column.runs[0], resolve_device(compute.device)
    workload = workload_of(column, compute)
    if micro_batch_of(column, workload, compute) is not None:
        return  # the loop engine trains it
    runs = workload.lanes if device == "cuda" else len(column.runs)  # those of one GPU
    images = runs * column.updates(run) * run.batch_size
    decide(
        name_of(column, device), workload, images,
        lambda: can_stack(column, device), memory_of(compute), rest,
    )  # fmt: skip


def decide(
    column: str,
    workload: Workload,
    images: int,
    stackable: Callable[[], bool],
    memory: int | None = None,
    rest: Callable[[], object] = lambda: None,
) -> Method | None:
    """The method to train a column; None if measuring would not pay, or other programs disturb it.

    Args:
        column: The column's name; a choice for a column on this machine is never changed.
        workload: The column's workload.
        images: Training images of all its runs; with 0, nothing is measured.
        stackable: Whether the stacked engine can train its model.
        memory: Bytes for the lanes of all workers.
        rest: As for :func:`find_out`.
    """
    if (method := decided(column, workload, stackable)) is not None:
        return method
    if workload.lanes == 1 or not stackable():
        return None
    candidates, flops = methods(workload, ("loop", "stacked")), training_flops_of(workload)
    worth = min(MOST_SECONDS[workload.device], SHARE * least_seconds(workload, images, flops))
    if cost(workload, candidates, flops) > worth:
        return None
    _say(f"finding the fastest way to train {workload.key}")
    rest()
    calibrate(workload, candidates, memory)
    return decided(column, workload, stackable)


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr, flush=True)
