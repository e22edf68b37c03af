"""Exactness on the device: the stacked engine against `loop`, and against itself.

A deviation is ‖θ − θ_loop‖ / ‖θ_loop − θ_0‖ over all weights of a lane, the worst lane counting.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.inputs import Settings, make_runs
from benchmarks.gpu.peers_task import LIMIT
from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.kinds import Kernels
from smallbatch.engines.lanes.step import capture
from smallbatch.engines.lanes.torch.lanes import make_step
from smallbatch.engines.resident import Resident, Split

# Deviations up to which a check passes, fixed before the first measurement on a GPU. In float32 an
# activation within rounding of 0 may be clipped in one engine and not in the other, which moves an
# update by up to some thousandths (seen on a CPU, where the float64 deviation is 1e-14).
ONE_STEP = 1e-2  # float32
SOME_STEPS = LIMIT  # float32, twenty updates of small images


def part(data: Resident, n: int, dtype: torch.dtype) -> Resident:
    """The first ``n`` training images and 20 test images."""
    train, test = data.train, data.test
    return Resident(
        Split(train.images[:n].to(dtype), train.labels[:n]),
        Split(test.images[:20].to(dtype), test.labels[:20]),
        None,
        None if data.windows is None else data.windows[:n].to(dtype),
        data.classes,
    )


def _kernels(data: Resident) -> Kernels:
    """Triton's on a GPU; on a CPU, where these are only interpreted, torch's."""
    return "triton" if data.train.images.is_cuda else "grouped"


def against_loop(model: str, norm: str, data: Resident, updates: int) -> dict[str, Any]:
    """The worst deviation of two learning rates × two seeds after some updates of 16 images.

    Against `loop` in float64; beside it `loop`'s own in float32.
    """
    size = (10 if model == "alexnet" else 6) if norm == "ghost" else None
    settings = Settings(model, norm, bn_batch_size=size, augment=True)
    few, exact = (part(data, 16 * updates, dtype) for dtype in (torch.float32, torch.float64))
    runs = make_runs(settings, 16, [2.0**-9, 2.0**-7], 2)
    results = stacked.train_lanes(runs, few, kernels=_kernels(few), by_torch=True)
    worst, loops = 0.0, 0.0
    for run, result in zip(runs, results, strict=True):
        start = loop.initial_model(run, few).state_dict()
        expected = loop.train(run, exact, dtype=torch.float64).weights
        worst = max(worst, _deviation(result.weights, expected, start))
        loops = max(loops, _deviation(loop.train(run, few).weights, expected, start))
    limit = ONE_STEP if updates == 1 else SOME_STEPS
    return {"deviation": worst, "loop": loops, "limit": limit, "passed": worst <= limit}


def _deviation(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    if not one or not other:
        return 0.0 if bool(one) == bool(other) else float("inf")
    mine, theirs, begin = (
        torch.cat([value.double().flatten().cpu() for value in state.values()])
        for state in (one, other, start)
    )
    return ((mine - theirs).norm() / (theirs - begin).norm()).item()


def divergence(data: Resident, updates: int) -> dict[str, Any]:
    """Outcomes of runs of which some diverge, against the loop's; updates are for information.

    Where a sum overflows, the order of its terms decides whether it ends as -inf, which a ReLU
    clips, or as NaN: a lane may diverge some updates before or after the loop's run.
    """
    settings = Settings("resnet8", "none", epochs=2)
    few = part(data, 4 * updates, torch.float32)
    runs = make_runs(settings, 4, [2.0**-9, 2.0**4, 2.0**10, 2.0**60], 2)
    results = stacked.train_lanes(runs, few, kernels=_kernels(few), by_torch=True)
    found = [(r.outcome, r.diverged_at) for r in results]
    expected = [(r.outcome, r.diverged_at) for r in (loop.train(run, few) for run in runs)]
    return {
        "found": found,
        "expected": expected,
        "passed": [o for o, _ in found] == [o for o, _ in expected],
    }


def neighbours(data: Resident, updates: int) -> dict[str, Any]:
    """Bits of lanes beside a diverging one, against the same lanes beside one that learns."""
    few, states = part(data, 16 * updates, torch.float32), list[list[Tensor]]()
    for base_lr in (2.0**-8, 2.0**120):
        runs = make_runs(Settings("resnet8", "batch"), 16, [2.0**-9, base_lr, 2.0**-7], 2)
        states.append(_advance(runs, few, updates, captured=few.train.images.is_cuda))
    kept = [0, 2, 3, 5]
    same = [torch.equal(a[kept], b[kept]) for a, b in zip(*states, strict=True) if len(a) == 6]
    return {"identical": all(same), "passed": all(same)}


def captured(data: Resident, updates: int) -> dict[str, Any]:
    """The captured step's bits against the plain step's."""
    few = part(data, 16 * updates, torch.float32)
    runs = make_runs(Settings("resnet8", "batch"), 16, [2.0**-9, 2.0**-7], 2)
    cuda = few.train.images.is_cuda
    states = [_advance(runs, few, updates, captured=cuda and use) for use in (False, True)]
    same = all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    return {"identical": same, "passed": same}


def _advance(runs: Any, data: Resident, updates: int, *, captured: bool) -> list[Tensor]:
    with torch.no_grad(), loop.arithmetic("float32", data.train.images.device):
        step, _ = make_step(runs, data, torch.float32, _kernels(data))
        step.tables.load(0)
        call = capture(step, step.state()) if captured else step
        for _ in range(updates):
            call()
        return [value.clone() for value in step.state()]


def chunks(data: Resident, updates: int) -> dict[str, Any]:
    """Lanes trained in two halves against the same trained together: on a GPU, their bits."""
    few = part(data, 16 * updates, torch.float32)
    runs = make_runs(Settings("resnet8", "batch"), 16, [2.0**-9, 2.0**-8, 2.0**-7], 2)
    train = partial(stacked.train_lanes, data=few, kernels=_kernels(few), by_torch=True)
    together, halves = train(runs), [*train(runs[::2]), *train(runs[1::2])]
    worst, identical = 0.0, True
    for one, other in zip(halves, [*together[::2], *together[1::2]], strict=True):
        start = loop.initial_model(runs[0], few).state_dict()
        worst = max(worst, _deviation(one.weights, other.weights, start))
        identical &= all(torch.equal(w, other.weights[name]) for name, w in one.weights.items())
    passed = identical if few.train.images.is_cuda else worst <= ONE_STEP
    return {"identical": identical, "deviation": worst, "passed": passed}
