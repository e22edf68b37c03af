"""Finding out how fast this machine trains a column in each way, where that pays."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from smallbatch.errors import Stopped, Stopping, UserError, WorkerLost, first_line
from smallbatch.placement.known import alike, case_key, decided, known, learn, ways
from smallbatch.placement.placement import (
    can_stack,
    memory_of,
    name_of,
    resolve_device,
    workload_of,
)
from smallbatch.placement.workload import Method, Workload, training_flops_of
from smallbatch.speed.agreement import COMPARED, check
from smallbatch.speed.rate import few_updates, measure

if TYPE_CHECKING:
    from smallbatch.config.params import ComputeConfig
    from smallbatch.protocol.column import Column

SHARE = 0.02  # of a column's time that may go into finding out how to train it,
MOST_SECONDS = {"cpu": 10.0, "cuda": 60.0}  # but never more than this
SECONDS = 0.5  # of measuring one way
# For the least time that a column can take: FLOP/s of one worker that no way exceeds by much, and
# seconds of an update however small. Of a GPU: what an H200 did with ResNet-8, rounded outwards.
FAST = {"cpu": 6e10, "cuda": 4e13}
QUICKEST = {"cpu": 0.0, "cuda": 1e-4}
# For the most that a measurement takes: FLOP/s of one worker that none falls far below, seconds
# that an update takes besides, seconds before there is anything to measure, and seconds in which
# the kernels of a model are compiled, once on a machine: some thirty of a second each.
SLOW = {"cpu": 1e10, "cuda": 2e12}
DISPATCH = {"cpu": 0.02, "cuda": 0.005}
START = {"cpu": 0.5, "cuda": 1.0}
COMPILE = 30.0


def calibrate(case: Workload, candidates: Iterable[Method], memory: int | None = None) -> None:
    """Measure the ways that are not known yet; one that fails where others work has rate 0.

    So has one on a GPU whose first update is not the loop engine's; a line says why it is left out.

    Raises:
        UserError: the model cannot be built for these images.
        RuntimeError: no way works.
    """
    rates = dict(known().rates.get(case_key(case), {}))
    failure = None
    for way in candidates:
        if way.key not in rates:
            try:
                if _compared(case, way):
                    check(case, way, memory)
                rate = measure(alike(case), way, seconds=SECONDS, memory=memory)
                rates[way.key] = rate.images_per_second
            except Exception as error:  # a compiler's own errors too
                ends = isinstance(error, UserError | Stopping | Stopped)
                if ends and not isinstance(error, WorkerLost):
                    raise
                # Without its frames, which would keep the memory of what has failed.
                rates[way.key], failure = 0.0, error.with_traceback(None)
                failure.__cause__ = failure.__context__ = None
                if _compared(case, way):
                    _say(f"{case.key}: {way.key} is left out: {first_line(failure)}")
    if failure is not None and not any(rates.values()):
        raise failure
    learn(rates={case_key(case): rates})


def cost(case: Workload, candidates: Iterable[Method], flops: int) -> float:
    """Seconds that measuring these ways takes at most; ``flops`` are those of a training image."""
    start, candidates = START[case.device], list(candidates)

    def update(way: Method) -> float:
        runs = case.workers if way.engine == "loop" else alike(case).lanes
        images = case.batch_size * runs / case.workers
        return DISPATCH[case.device] + images * flops / SLOW[case.device]

    # An epoch that is left out and at least one that is measured.
    updates = 2 * few_updates(case)
    seconds = sum(start + max(SECONDS, updates * update(way)) for way in candidates)
    compared = [way for way in candidates if _compared(case, way)]
    if compared:  # the first update, and the loop engine's for some of the runs
        seconds += sum(start + update(way) for way in compared)
        seconds += start + COMPARED * update(Method("loop"))
    if any(way.kernels == "triton" and not _compiled(case, way) for way in compared):
        seconds += COMPILE
    return seconds


def _compared(case: Workload, way: Method) -> bool:
    """Whether a way must make the loop engine's first update: on a GPU, unless it is the loop."""
    return way.engine == "stacked" and case.device == "cuda"


def _compiled(case: Workload, way: Method) -> bool:
    """Whether a way was measured for such a model: a machine keeps what it has compiled."""
    kind = f"{case.model} ", f" {case.precision} "
    rates = known().rates.items()
    return any(all(word in key for word in kind) and way.key in ways for key, ways in rates)


def least_seconds(case: Workload, images: int, flops: int) -> float:
    """Seconds that so many training images, of all runs, take at least."""
    arithmetic = images * flops / (FAST[case.device] * case.workers)
    return max(arithmetic, images / (case.batch_size * case.lanes) * QUICKEST[case.device])


def find_out(column: Column, compute: ComputeConfig) -> None:
    """Measure the ways to train a column, if nothing is known of them and measuring them pays.

    Raises:
        UserError: the device is not there, or the model cannot be built for these images.
    """
    if compute.engine != "auto" or len(column.runs) == 1:
        return
    run, device = column.runs[0], resolve_device(compute.device)
    images = len(column.runs) * column.updates(run) * run.batch_size
    decide(
        name_of(column, device), workload_of(column, compute), images,
        lambda: can_stack(column, device), memory_of(compute),
    )  # fmt: skip


def decide(
    column: str,
    case: Workload,
    images: int,
    stackable: Callable[[], bool],
    memory: int | None = None,
) -> Method | None:
    """The way to train a column, or None where finding out would not pay.

    Args:
        column: identifies it; what was decided for a column on this machine stays.
        case: its workload.
        images: all training images of its runs; with 0, nothing is measured.
        stackable: whether the stacked engine takes its model at all.
        memory: bytes for the lanes of all workers.
    """
    if (way := decided(column, case, stackable)) is not None:
        return way
    if case.lanes == 1 or not stackable():
        return None
    candidates, flops = ways(case, ("loop", "stacked")), training_flops_of(case)
    worth = min(MOST_SECONDS[case.device], SHARE * least_seconds(case, images, flops))
    if cost(case, candidates, flops) > worth:
        return None
    _say(f"finding the fastest way to train {case.key}")
    calibrate(case, candidates, memory)
    return decided(column, case, stackable)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
