"""Whether a method makes the same first update as the loop engine; checked on a GPU.

The deviation of a run is ‖θ − θ_loop‖ / ‖θ_loop − θ_0‖ over all its weights. The largest counts.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.errors import UserError
from smallbatch.placement.workload import Method, Workload, noise
from smallbatch.speed.rate import job_of, runs_of

if TYPE_CHECKING:
    from torch import Tensor

    from smallbatch.config.study import Precision
    from smallbatch.data.prepared import Dataset
    from smallbatch.protocol.run import Run

    Weights = Mapping[str, Tensor]

# Largest deviations that count as agreement, by the study's precision. Correct kernels deviate too:
# an activation that is 0 within rounding may be clipped by the ReLU in one engine only. On a CPU,
# in ResNets and AlexNet at m = 2 to 32, the deviation was at most 0.005 in float32, 0.11 with the
# inputs of convolutions rounded to TF32, and 0.3 in bf16. Batch norm of AlexNet's FC layers over 2
# examples amplifies TF32's rounding further; the loop engine then trains.
LIMIT: dict[Precision, float] = {"float32": 1e-2, "tf32": 0.2, "bf16": 0.5}
COMPARED = 8  # most runs, evenly spread over the column, that the loop engine trains for comparison
# η of the first run. The deviation hardly depends on it, unless the update is so small that
# rounding loses it or so large that it overflows.
LR = 2.0**-4
# AdamW's ε in the comparison. Beside the usual one a first update is η·sign(g), so that a weight
# whose gradient is 0 within rounding goes one way in one engine and the other way in another.
# Beside this one, which is much larger than a gradient, the update is in proportion to it.
EPS = 0.5


class Disagreement(RuntimeError):  # noqa: N818 - a finding about a way
    """A method that must not train a column."""


def check(workload: Workload, method: Method, memory: int | None = None) -> None:
    """Compare a method's first update with the loop engine's, on the same runs.

    All runs of the column are trained for one update, in the same way as by the pipeline.

    Raises:
        Disagreement: The method fails, or its update deviates too much.
        UserError: Memory ran out, or the model cannot be built.
    """
    start, expected = _loops(workload, memory)
    try:
        found = first_updates(workload, method, memory)
    except UserError:
        raise
    except Exception as error:  # a compiler's own errors
        raise Disagreement(f"{type(error).__name__}: {error}") from error
    deviation = worst([(found[name], expected[name], start[name]) for name in expected])
    limit = LIMIT[workload.settings().precision]
    if deviation > limit:
        raise Disagreement(
            f"its first update deviates from the loop's by {deviation:.2g}, allowed: {limit:g}"
        )


def worst(runs: Sequence[tuple[Weights, Weights, Weights]]) -> float:
    """The largest deviation; each run has its weights found, expected and at the start."""
    return max(_deviation(*weights) for weights in runs)


def _deviation(found: Weights, expected: Weights, start: Weights) -> float:
    import torch

    if not found or not expected:  # the run diverged in its first update
        return 0.0 if bool(found) == bool(expected) else math.inf
    mine, theirs, begin = (
        torch.cat([weights[name].double().flatten() for name in expected])
        for weights in (found, expected, start)
    )
    apart, moved = (mine - theirs).norm().item(), (theirs - begin).norm().item()
    if apart == 0:
        return 0.0
    return apart / moved if moved > 0 and math.isfinite(apart) else math.inf


@lru_cache(maxsize=1)  # the methods of one workload are compared with the same weights
def _loops(workload: Workload, memory: int | None) -> tuple[dict[str, Weights], dict[str, Weights]]:
    """Weights of some runs, by hash, before and after the loop engine's first update."""
    import torch

    from smallbatch.engines.loop import initial_model
    from smallbatch.engines.resident import load_resident

    dataset = noise(workload, workload.batch_size)
    runs = _compared(workload, dataset)
    last, count = len(runs) - 1, min(COMPARED, len(runs))
    some = {round(i * last / max(1, count - 1)) for i in range(count)}
    after = first_updates(workload, Method("loop"), memory, some)
    data = load_resident(dataset, augment=False, device=torch.device("cpu"))
    seeds = {run.seed: initial_model(run, data).state_dict() for run in runs}
    return {run.hash: seeds[run.seed] for run in runs if run.hash in after}, after


def _compared(workload: Workload, dataset: Dataset) -> list[Run]:
    """The runs of a workload, with rates and an ε under which updates can be compared."""
    settings = workload.settings(epochs=1)
    if workload.optimizer == "adamw":
        return runs_of(workload, settings.model_copy(update={"eps": EPS}), dataset, LR)
    return runs_of(workload, settings, dataset, LR / workload.batch_size)


def first_updates(
    workload: Workload, method: Method, memory: int | None = None, some: set[int] | None = None
) -> dict[str, Weights]:
    """Weights after one update, by the runs' hashes; empty for a run that diverged.

    Args:
        workload: The workload; its images are noise.
        method: The method.
        memory: Bytes for the lanes of all workers; by default a fraction of the free memory.
        some: Indices of the runs to train; by default all.
    """
    from smallbatch.execution.workers import train_all
    from smallbatch.records.files import load_record

    dataset = noise(workload, workload.batch_size)
    runs = [run for i, run in enumerate(_compared(workload, dataset)) if some is None or i in some]
    weights: dict[str, Weights] = {}
    with tempfile.TemporaryDirectory(prefix="smallbatch-") as folder:
        job = job_of(workload, method, runs, dataset, Path(folder), memory)
        train_all(job, on_epoch=lambda *_: None, on_done=lambda *_: None)
        for run in runs:
            record = load_record(job.work / run.hash, [job.placement.made_by])
            if record is None:
                raise RuntimeError(f"the run that was just trained cannot be read back: {run.hash}")
            weights[run.hash] = record[0].weights
    return weights
