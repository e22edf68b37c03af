"""Images per second of the engines' ways to compute K lanes, and where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.checks import part
from benchmarks.gpu.hardware import seconds as seconds_of
from benchmarks.gpu.inputs import Settings, make_runs
from smallbatch.engines.lanes.step import capture
from smallbatch.engines.lanes.torch.lanes import TorchLanes, make_step
from smallbatch.engines.loop import arithmetic, train
from smallbatch.engines.resident import Resident

BASE_LRS = [2.0**-e for e in range(12, -1, -1)]  # the paper's 13
TAME = 2.0**-14  # a base learning rate at which nothing diverges
FIG2_EPOCHS, FIG2_IMAGES = 82, 50_000


def images_per_second(
    way: str, settings: Settings, m: int, lanes: int, data: Resident, seconds: float
) -> dict[str, float]:
    """Of all lanes together, in training steps without evaluations.

    Args:
        way: `loop`, or the kernels of stacked lanes.
        settings: of the study.
        m: examples of an update.
        lanes: runs, of two seeds where they come in pairs.
        data: resident.
        seconds: to measure for, about.
    """
    if way == "loop":
        return _loop_rate(settings, m, data, seconds)
    device, began = data.train.images.device, time.perf_counter()
    with torch.no_grad(), arithmetic("float32", device):
        step = _stacked_step(way, settings, m, lanes, data)
        ready = time.perf_counter() - began
        took = seconds_of(step, device, seconds)
    return {
        "images_per_second": lanes * m / took,
        "step_us": 1e6 * took,
        "compile_seconds": ready,
    }


def _loop_rate(settings: Settings, m: int, data: Resident, seconds: float) -> dict[str, float]:
    """Of the loop engine as it trains, from the end of one epoch to the end of another."""
    updates = max(2, round(200 * seconds))
    few = part(data, m * min(updates, len(data.train) // m), torch.float32)
    (run,) = make_runs(replace(settings, epochs=3), m, [TAME])
    ends: list[float] = []
    began = time.perf_counter()
    train(run, few, on_epoch=lambda _: ends.append(time.perf_counter()))
    took = (ends[-1] - ends[0]) / 2 / (len(few.train) // m)
    return {
        "images_per_second": m / took,
        "step_us": 1e6 * took,
        "compile_seconds": ends[0] - began,
    }


def _column(settings: Settings, m: int, lanes: int) -> list[Any]:
    """Runs of two seeds where lanes come in pairs, at rates where all stay finite."""
    seeds = 1 if lanes % 2 else 2
    base_lrs = [TAME * (1 + i / lanes) for i in range(lanes // seeds)]
    return make_runs(settings, m, base_lrs, seeds)


def _stacked_step(
    way: Any, settings: Settings, m: int, lanes: int, data: Resident
) -> Callable[[], None]:
    """A step of the stacked engine, captured where there is a GPU."""
    step, _ = make_step(_column(settings, m, lanes), data, torch.float32, way)
    rows, done = step.tables.load(0)[1], [0]
    captured = data.train.images.is_cuda
    call: Callable[[], None] = capture(step, step.state()) if captured else step

    def again() -> None:
        if done[0] % rows == 0:
            step.tables.counter.zero_()
        done[0] += 1
        call()

    return again


def evaluation_seconds(settings: Settings, lanes: int, data: Resident) -> float:
    """Of one evaluation of all lanes on the test set."""
    device = data.train.images.device
    with torch.no_grad(), arithmetic("float32", device):
        column = TorchLanes(_column(settings, 32, lanes), data, torch.float32)
        return seconds_of(lambda: column.evaluate(data.test), device)


def fig2(steps: dict[int, float], evaluation: float) -> dict[str, Any]:
    """Hours of the paper's Fig. 2 from the seconds of a step of 13 lanes at each batch size.

    No lane is taken to diverge, so this is an upper estimate: those that do stop costing.
    """
    updates = {m: FIG2_EPOCHS * FIG2_IMAGES // m for m in steps}
    columns = {m: updates[m] * step + FIG2_EPOCHS * evaluation for m, step in steps.items()}
    return {
        "minutes_by_batch_size": {str(m): value / 60 for m, value in columns.items()},
        "minutes": sum(columns.values()) / 60,
        "images": len(BASE_LRS) * FIG2_EPOCHS * FIG2_IMAGES * len(columns),
    }


def kernels(settings: Settings, m: int, lanes: int, data: Resident) -> list[dict[str, Any]]:
    """Where the time of a step goes: the GPU's kernels by their time, from torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    device = data.train.images.device
    cuda = device.type == "cuda"
    with torch.no_grad(), arithmetic("float32", device):
        step = _stacked_step("triton" if cuda else "grouped", settings, m, lanes, data)
        step()
        watched = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=watched) as found:
            for _ in range(10):
                step()
            if cuda:
                torch.cuda.synchronize()
    rows = [
        {"kernel": event.key[:80], "calls": event.count / 10,
         "us": (event.self_device_time_total if cuda else event.self_cpu_time_total) / 10}
        for event in found.key_averages()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["us"])[:25]
