"""Images per second of every way to compute K lanes, and what that makes of the paper's grid."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.gpu.hardware import seconds
from benchmarks.gpu.inputs import Settings, make_runs
from smallbatch.data.sampling import batches
from smallbatch.training.loop import FlatSGD, arithmetic, initial_model
from smallbatch.training.resident import Resident
from smallbatch.training.stacked import train_lanes
from smallbatch.training.stacked.choice import (
    candidates,
    default_convs,
    default_fusing,
    default_tail,
)
from smallbatch.training.stacked.convs import Convs, Grouped
from smallbatch.training.stacked.inputs import Tables
from smallbatch.training.stacked.lanes import stack_lanes
from smallbatch.training.stacked.step import Step, capture
from smallbatch.training.stacked.torch_lanes import TorchLanes, build_net
from smallbatch.training.stacked.vmap import VmapNet

BASE_LRS = [2.0**-e for e in range(12, -1, -1)]  # the paper's 13
TAME = 2.0**-14  # a base learning rate at which nothing diverges
FIG2_BATCHES = [2**e for e in range(1, 12)]
FIG2_EPOCHS, FIG2_IMAGES = 82, 50_000


def variants(device: torch.device) -> list[str]:
    """What is measured, by name; the GPU's kernels only where they are compiled."""
    kernels = ["triton-ieee", "triton-tf32x3", "auto"] if device.type == "cuda" else []
    # Last what is most likely to fail and matters least.
    return ["loop", "grouped", *kernels, "eager", "vmap-eager", "vmap"]


def images_per_second(
    variant: str, settings: Settings, m: int, lanes: int, data: Resident, toy: bool
) -> dict[str, float]:
    """Of all lanes together, in training steps without evaluations."""
    device = data.train.images.device
    with arithmetic(settings.precision, device):  # pyright: ignore[reportArgumentType]
        if variant == "loop":
            step, lanes = _loop_step(settings, m, data), 1
        elif variant == "compile":
            step = _compiled_step(settings, m, lanes, data)
        else:
            with torch.no_grad():
                step = _stacked_step(variant, settings, m, lanes, data)
        with torch.set_grad_enabled(variant == "loop"):
            took = seconds(step, device, 0.01 if toy else 0.4)
    return {"step_us": 1e6 * took, "images_per_second": lanes * m / took}


def _loop_step(settings: Settings, m: int, data: Resident) -> Callable[[], None]:
    """A step of the loop engine."""
    run = make_runs(settings, m, [TAME])[0]
    model = initial_model(run, data).to(data.train.images.device)
    sgd = FlatSGD(model, settings.weight_decay)
    stream = list(batches(0, len(data.train), 1, m))
    pending: list[Any] = []

    def step() -> None:
        if not pending:
            pending.extend(stream)
        images, labels = data.batch(pending.pop())
        logits = model(images)
        loss = cross_entropy(logits.float(), labels, reduction="sum")
        loss.item()
        (logits.argmax(1) == labels).sum().item()
        loss.backward()
        sgd.update(run.base_lr, run.lr)
        sgd.finite()

    return step


def _column(settings: Settings, m: int, lanes: int) -> list[Any]:
    """Runs of two seeds where there are two lanes, at base learning rates where all stay finite."""
    seeds = min(2, lanes)
    base_lrs = [TAME * (1 + i / lanes) for i in range(-(-lanes // seeds))]
    return make_runs(settings, m, base_lrs, seeds)[:lanes]


def _stacked_step(
    variant: str, settings: Settings, m: int, lanes: int, data: Resident
) -> Callable[[], None]:
    """A step of the stacked engine, captured where there is a GPU and that is asked for."""
    device = data.train.images.device
    runs = _column(settings, m, lanes)
    if variant.startswith("vmap"):
        builders = [partial(initial_model, run, data) for run in runs]
        stacked, model = stack_lanes(builders, device, torch.float32, all_buffers=True)
        net: Any = VmapNet(stacked, model)
    else:
        net, _ = build_net(runs, data, torch.float32, _convs(variant, settings, device))
    tables = Tables(runs, data, torch.float32, default_fusing(data.train.images.device))
    step = Step(net, tables, default_tail(device, torch.float32))
    rows, done = tables.load(0)[1], [0]
    captured = device.type == "cuda" and not variant.endswith("eager")
    call: Callable[[], None] = capture(step, step.state()) if captured else step

    def again() -> None:
        if done[0] % rows == 0:
            tables.counter.zero_()
        done[0] += 1
        call()

    return again


def _convs(variant: str, settings: Settings, device: torch.device) -> Convs | None:
    if variant == "auto":
        return None
    if variant == "eager":
        return Grouped() if device.type == "cpu" else default_convs(device, "float32")
    precision: Any = settings.precision
    return candidates(precision)[variant]


def _compiled_step(settings: Settings, m: int, lanes: int, data: Resident) -> Callable[[], None]:
    """Gradients by `torch.compile` of vmapped lanes, captured; batch and rates stay the same."""
    from torch.func import functional_call, grad, vmap

    device = data.train.images.device
    builders = [partial(initial_model, run, data) for run in _column(settings, m, lanes)]
    stacked, model = stack_lanes(builders, device, torch.float32, all_buffers=True)
    model = model.to(device)
    images, labels = data.train.images[:m].contiguous(), data.train.labels[:m]

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        logits = functional_call(model, (parameters, buffers), images)
        return cross_entropy(logits, labels, reduction="sum")

    gradients: Any = torch.compile(vmap(grad(loss)), dynamic=False)

    def step() -> None:
        found = gradients(stacked.views, stacked.statistics)
        for name, gradient in found.items():
            stacked.views[name].sub_(gradient, alpha=TAME)

    if device.type != "cuda":
        return step
    with torch.no_grad():
        return capture(step, [stacked.theta, *stacked.statistics.values()])


def evaluation_seconds(settings: Settings, lanes: int, data: Resident) -> float:
    """Of one evaluation of all lanes on the test set."""
    device = data.train.images.device
    with torch.no_grad(), arithmetic("float32", device):
        column = TorchLanes(_column(settings, 32, lanes), data, torch.float32)
        return seconds(lambda: column.evaluate(data.test), device)


def column(settings: Settings, m: int, base_lrs: list[float], data: Resident) -> dict[str, Any]:
    """A column trained as the engine does it: captures, evaluations, lanes that diverge."""
    start = time.perf_counter()
    results = train_lanes(make_runs(settings, m, base_lrs), data)
    took = time.perf_counter() - start
    images = sum(result.rows[-1]["updates"] * m for result in results)
    return {
        "seconds": took,
        "images": images,
        "images_per_second": images / took,
        "finished": sum(result.outcome == "finished" for result in results),
        "diverged_at": [result.diverged_at for result in results],
    }


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
        step = _stacked_step("auto" if cuda else "grouped", settings, m, lanes, data)
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
