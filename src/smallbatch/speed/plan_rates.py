"""The speeds that a plan needs: measured once on a machine, and from those the ones in between."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from smallbatch.engines.kinds import Engine
from smallbatch.errors import shown
from smallbatch.placement.known import fastest, known, learn, rates_of
from smallbatch.placement.known import methods as methods_of
from smallbatch.placement.memory import memory_of, micro_batch_of
from smallbatch.placement.placement import (
    Placement,
    can_stack,
    place,
    resolve_device,
    workload_of,
)
from smallbatch.placement.workload import Method, Workload, training_flops_of
from smallbatch.speed import calibration
from smallbatch.speed.share import LEAST, CoreShare, taken

if TYPE_CHECKING:
    from smallbatch.config.params import Params
    from smallbatch.protocol.column import Column

# Most seconds for measuring one batch size; if it would take longer, its rate is interpolated.
MOST_SECONDS = {"cpu": 5.0, "cuda": 30.0}
SPACING = 4  # least ratio of one measured batch size to the one before


def measure(columns: Sequence[Column], params: Params) -> bool:
    """Measure the speed of some batch sizes of one study, and say so.

    Args:
        columns: Those that are to be trained.
        params: The content of the params file.

    Returns:
        Whether other programs took a part of the cores, so that some speeds are only rough.

    Raises:
        UserError: The model cannot be built for these images.
    """
    last, measured = 0.0, False
    wanted: list[tuple[Workload, list[Method]]] = []
    seconds = 0.0
    for column in sorted(columns, key=lambda column: column.batch_size):
        workload = workload_of(column, params.compute)
        candidates = _candidates(column, params)
        if not fastest(workload, candidates, rough=True):
            cost = calibration.cost(workload, candidates, training_flops_of(workload))
            too_much = workload.batch_size < SPACING * last or cost > MOST_SECONDS[workload.device]
            if measured and too_much:
                continue
            wanted.append((workload, candidates))
            seconds += cost
        last, measured = workload.batch_size, True
    if wanted:
        sizes = ", ".join(str(workload.batch_size) for workload, _ in wanted)
        _say(
            f"measuring this machine's speed, once: {columns[0].study} at m = {sizes} "
            f"(about {math.ceil(seconds)} s)"
        )
    for workload, candidates in wanted:
        calibration.calibrate(workload, candidates, memory_of(params.compute))
    workloads = [workload_of(column, params.compute) for column in columns]
    return any(rates_of(it, rough=True) != rates_of(it) for it in workloads)


def known_rates(
    column: Column, columns: Sequence[Column], params: Params, placement: Placement
) -> dict[int, float]:
    """Images per second by batch size: by the column's method, or at other m by the fastest."""
    workload = workload_of(column, params.compute)
    rates: dict[int, float] = {}
    # With ghost norm other columns have other numbers of lanes. Rates for this column's lanes, if
    # there are any, come last and so replace theirs.
    workloads = [
        (workload_of(other, params.compute), _candidates(other, params)) for other in columns
    ]
    candidates = _candidates(column, params)
    workloads += [
        (workload.at(m), candidates) for m in (*(2**i for i in range(12)), column.batch_size)
    ]
    for other, methods in workloads:
        best = fastest(other, methods, rough=True)
        if best is not None:
            rates[other.batch_size] = best[1]
    if (own := rates_of(workload, rough=True).get(placement.method.key)) is not None:
        rates[workload.batch_size] = own
    return rates


def interpolate(rates: Mapping[int, float], batch_size: int) -> float:
    """Images per second at a batch size, from those at others.

    Between two batch sizes, linear in the logarithms. Below the smallest, proportional to m, as
    the time of an update is constant there; above the largest, constant.
    """
    sizes = sorted(rates)
    if batch_size in rates:
        return rates[batch_size]
    if batch_size < sizes[0]:
        return rates[sizes[0]] * batch_size / sizes[0]
    logs = np.interp(math.log(batch_size), np.log(sizes), [math.log(rates[m]) for m in sizes])
    return math.exp(float(logs))


def startup() -> float:
    """Seconds until a column's processes are ready to train.

    Measured once per machine, or once per process while other programs take a part of the cores.
    """
    if (startup := known().startup) is not None:
        return startup
    _say("measuring how long a training takes to start, once (about 10 s)")
    start, cores = time.perf_counter(), CoreShare()
    # The process of the tracking imports its libraries at the same time as the training does.
    imports = ("smallbatch.execution.workers, pandas", "mlflow")
    processes = [
        subprocess.Popen(
            (sys.executable, "-P", "-c", f"import {names}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for names in imports
    ]
    for process in processes:
        process.wait()
    seconds = time.perf_counter() - start
    if (share := cores.so_far()) < LEAST:
        _say(f"{taken(share)} meanwhile: it will be measured again")
    learn(startup=seconds, keep=share >= LEAST)
    return seconds


def _candidates(column: Column, params: Params) -> list[Method]:
    workload, asked = workload_of(column, params.compute), params.compute.engine
    if (size := micro_batch_of(column, workload, params.compute)) is not None:
        return [Method("loop", micro_batch=size)]
    device = resolve_device(params.compute.device)
    engines: list[Engine] = ["loop"]
    stacks = asked != "loop" and not column.streamed
    if stacks and workload.lanes > 1 and can_stack(column, device):
        engines = ["stacked"] if asked == "stacked" else ["loop", "stacked"]
    methods = methods_of(workload, engines)
    if asked != "stacked" or column.streamed:
        return methods
    kernels = place(column, params.compute, keep=False).method.kernels
    return [method for method in methods if method.kernels == kernels]


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr, flush=True)
