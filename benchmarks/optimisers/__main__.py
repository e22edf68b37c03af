"""What the optimisers cost: seconds per update of the native kernels, and to stream their moments.

    python -m benchmarks.optimisers [--out FILE.json]

ResNet-8 with batch norm, 8×8 images, one group of lanes on one core. The updates of the weights
alone, and whole training. AdamW's extra time is held against what its extra bytes take: plain SGD
that also reads and writes two moments in each update. All cases of a round follow one another, so
that whatever else the machine does meets all of them; the fastest round counts.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from smallbatch import machine
from smallbatch.config.study import Optimizer, StudyConfig
from smallbatch.engines.lanes.native import width
from smallbatch.engines.lanes.native.compile import SOURCE
from smallbatch.engines.lanes.native.compiler import FLAGS, LIMIT_S, identity, run
from smallbatch.engines.lanes.native.lanes import NativeLanes
from smallbatch.engines.resident import load_resident
from smallbatch.markdown import table
from smallbatch.placement.workload import Workload, noise
from smallbatch.protocol.optimiser import MOMENTS
from smallbatch.protocol.run import Run

CASES = ((2, 8), (32, 4), (512, 1))  # m, and the lanes: those of one vector, or fewer
ROUNDS = 40
NOISE = 0.05  # of an update: what plain SGD's fastest rounds differ by on a shared host
ALONE = 50  # updates of the weights alone in a call
NAMES = (*MOMENTS, "streaming")  # the last: plain SGD that streams two moments as well


def compiled() -> ctypes.CDLL:
    """`streaming.cpp` as the product compiles its kernels."""
    source = Path(__file__).with_name("streaming.cpp")
    command = [identity()[0], *FLAGS, "-DREAL=float", f"-DV={width.vector_width()}"]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "streaming.so")
        run([*command, f"-I{SOURCE.parent}", str(source), "-o", str(made)], LIMIT_S)
        return ctypes.CDLL(str(made))


class Case:
    """One optimiser at one m, or plain SGD that streams two moments."""

    def __init__(self, name: str, m: int, lanes: int, driver: ctypes.CDLL) -> None:
        shape = Workload(
            "resnet8", "batch", None, False, "float32", 1, 8, 8, 10, m, lanes, "cpu", 1
        )
        data = load_resident(noise(shape, 2**16), augment=False, device=torch.device("cpu"))
        optimizer: Optimizer = "adamw" if name == "streaming" else name  # pyright: ignore[reportAssignmentType]
        settings = StudyConfig(
            model="resnet8", norm="batch", epochs=10**6, weight_decay=1e-4, optimizer=optimizer
        )
        runs = [Run(settings, "noise", m, 2.0**-30, seed) for seed in range(lanes)]
        self.name, self.driver, self.done, self.epoch = name, driver, 0, 2**16 // m
        self.lanes = NativeLanes(runs, data, torch.float32)
        if name == "streaming":
            self.lanes._library = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
                train_with=driver.train_streaming
            )
        self.training()  # finds out how many updates are a stretch, and leaves a gradient

    def training(self) -> float:
        """Seconds of one update with all that belongs to it, over about 0.3 s."""
        first = self.done % self.epoch
        start = time.perf_counter()
        updates = self.lanes.advance(first, self.epoch)
        self.done += updates
        return (time.perf_counter() - start) / updates

    def alone(self) -> float:
        """Seconds of one update of the weights by a gradient that is there."""
        net = ctypes.byref(self.lanes._network.structure)
        group, of = ctypes.byref(self.lanes._group(0)), self.lanes._optimiser(0)
        schedule, times = (ctypes.c_double * 3)(1, 1, 1), ctypes.c_int64(ALONE)
        start = time.perf_counter()
        if self.name in ("sgd", "streaming"):
            self.driver.only_sgd(net, group, schedule, times)
        else:
            self.driver.only_optimiser(net, group, ctypes.byref(of), schedule, times)
        if self.name == "streaming":
            self.driver.only_streaming(net, ctypes.byref(of), times)
        return (time.perf_counter() - start) / ALONE


def fastest(calls: dict[str, Callable[[], float]]) -> dict[str, Any]:
    """The fastest of ROUNDS rounds, in seconds, and what is held against the bars."""
    rounds = [{name: call() for name, call in calls.items()} for _ in range(ROUNDS)]
    best = {name: min(one[name] for one in rounds) for name in calls}
    streaming = best["streaming"] - best["sgd"]
    told = streaming > NOISE * best["sgd"]
    return {
        "seconds": best,
        "momentum_over_sgd": best["momentum"] / best["sgd"],
        "adamw_over_sgd": best["adamw"] / best["sgd"],
        "adamw_extra_over_streaming": (best["adamw"] - best["sgd"]) / streaming if told else None,
    }


def measured(m: int, lanes: int, driver: ctypes.CDLL) -> dict[str, Any]:
    """The updates of the weights alone, and whole training."""
    cases = {name: Case(name, m, lanes, driver) for name in NAMES}
    return {
        "batch_size": m,
        "lanes": lanes,
        "parameters": cases["sgd"].lanes.parameters,
        "update": fastest({name: case.alone for name, case in cases.items()}),
        "training": fastest({name: case.training for name, case in cases.items()}),
    }


def as_markdown(record: dict[str, Any]) -> str:
    """The record as a table."""
    heads = ["m", "lanes", "what", *(f"{name}, µs" for name in NAMES[:-1]), "sgd + streaming, µs",
             "momentum / sgd", "adamw / sgd", "adamw's extra / streaming"]  # fmt: skip
    rows = [
        [
            str(case["batch_size"]),
            str(case["lanes"]),
            what,
            *(f"{1e6 * case[what]['seconds'][name]:,.1f}" for name in NAMES),
            f"{case[what]['momentum_over_sgd']:.3f}",
            f"{case[what]['adamw_over_sgd']:.3f}",
            "–" if (ratio := case[what]["adamw_extra_over_streaming"]) is None else f"{ratio:.2f}",
        ]
        for case in record["cases"]
        for what in ("update", "training")
    ]
    below = f"–: streaming takes less than {100 * NOISE:g} % of an update, which is noise."
    return f"{table(heads, rows, right=len(heads))}\n\n{below}\n"


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out: Path | None = parser.parse_args().out
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    driver = compiled()
    record = {
        "environment": machine.describe("cpu"),
        "vector": width.vector_width(),
        "rounds": ROUNDS,
        "cases": [measured(m, lanes, driver) for m, lanes in CASES],
    }
    text = as_markdown(record)
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n")
        out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
