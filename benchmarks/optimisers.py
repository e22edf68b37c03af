"""What the optimisers cost: seconds per update of the native kernels, and to stream their moments.

    python -m benchmarks.optimisers [--out FILE.json]

ResNet-8 with batch norm, 8×8 images, one group of lanes on one core. All cases of a round follow
one another, so that whatever else the machine does meets all of them; the fastest round counts.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smallbatch import machine
from smallbatch.config.study import Optimizer, StudyConfig
from smallbatch.engines.lanes.native.compile import LANES
from smallbatch.engines.lanes.native.lanes import NativeLanes
from smallbatch.engines.lanes.native.memory import aligned
from smallbatch.engines.resident import load_resident
from smallbatch.markdown import table
from smallbatch.placement.workload import Workload, noise
from smallbatch.protocol.optimiser import MOMENTS
from smallbatch.protocol.run import Run

CASES = ((2, 8), (32, 4), (512, 1))  # m, and the lanes that fill a vector
ROUNDS = 40
MOMENTUM = 1.15  # most that momentum's update may take of plain SGD's
ADAMW = 1.2  # most of AdamW's extra time, of what streaming its moments takes


class Case:
    """One optimiser at one m; a call makes updates for about 0.3 s and returns seconds of one."""

    def __init__(self, optimizer: Optimizer, m: int, lanes: int) -> None:
        shape = Workload(
            "resnet8", "batch", None, False, "float32", 1, 8, 8, 10, m, lanes, "cpu", 1
        )
        data = load_resident(noise(shape, 2**16), augment=False, device=torch.device("cpu"))
        settings = StudyConfig(
            model="resnet8", norm="batch", epochs=10**6, weight_decay=1e-4, optimizer=optimizer
        )
        runs = [Run(settings, "noise", m, 2.0**-30, seed) for seed in range(lanes)]
        self.lanes, self.done, self.epoch = NativeLanes(runs, data, torch.float32), 0, 2**16 // m
        self()  # finds out how many updates are a stretch

    def __call__(self) -> float:
        """Seconds of one update."""
        first = self.done % self.epoch
        start = time.perf_counter()
        updates = self.lanes.advance(first, self.epoch)
        self.done += updates
        return (time.perf_counter() - start) / updates


def streaming(values: int) -> Callable[[], float]:
    """Seconds of reading and writing as many float32 as AdamW's two moments have."""
    moments = [aligned(values, np.float32) for _ in range(2)]

    def once() -> float:
        start, passes = time.perf_counter(), 200
        for _ in range(passes):
            for moment in moments:
                np.multiply(moment, np.float32(1.0), out=moment)
        return (time.perf_counter() - start) / passes

    return once


def measured(m: int, lanes: int) -> dict[str, Any]:
    """The fastest of ROUNDS rounds, in seconds."""
    calls: dict[str, Callable[[], float]] = {name: Case(name, m, lanes) for name in MOMENTS}
    parameters = calls["sgd"].lanes.parameters  # pyright: ignore[reportFunctionMemberAccess]
    calls["streaming"] = streaming(parameters * lanes)
    rounds = [{name: call() for name, call in calls.items()} for _ in range(ROUNDS)]
    best = {name: min(one[name] for one in rounds) for name in calls}
    return {
        "batch_size": m,
        "lanes": lanes,
        "parameters": parameters,
        "seconds": best,
        "momentum_over_sgd": best["momentum"] / best["sgd"],
        "adamw_over_sgd": best["adamw"] / best["sgd"],
        "adamw_extra_over_streaming": (best["adamw"] - best["sgd"]) / best["streaming"],
    }


def as_markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    names = [*MOMENTS, "streaming"]
    heads = ["m", "lanes", *(f"{name}, µs" for name in names), "momentum / sgd", "adamw / sgd",
             "(adamw − sgd) / streaming"]  # fmt: skip
    rows = [
        [
            str(case["batch_size"]),
            str(case["lanes"]),
            *(f"{1e6 * case['seconds'][name]:,.1f}" for name in names),
            f"{case['momentum_over_sgd']:.3f}",
            f"{case['adamw_over_sgd']:.3f}",
            f"{case['adamw_extra_over_streaming']:.2f}",
        ]
        for case in record["cases"]
    ]
    return f"{table(heads, rows, right=len(heads))}\n"


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    record = {
        "environment": machine.describe("cpu"),
        "vector": LANES,
        "rounds": ROUNDS,
        "cases": [measured(m, lanes) for m, lanes in CASES],
    }
    text = as_markdown(record)
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
        out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
