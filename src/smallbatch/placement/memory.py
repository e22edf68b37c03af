"""How many examples of a batch the `loop` engine computes at a time, by the memory that is free."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from smallbatch import machine
from smallbatch.errors import Stopped, Stopping, UserError
from smallbatch.machine import free_memory
from smallbatch.placement.known import known, learn, name_of
from smallbatch.placement.ranks import share_of
from smallbatch.placement.workload import Method, noise
from smallbatch.text import count

if TYPE_CHECKING:
    from torch import nn

    from smallbatch.config.params import ComputeConfig
    from smallbatch.placement.workload import Workload
    from smallbatch.protocol.column import Column
    from smallbatch.protocol.run import Run

# Of the free memory, that the steps of all workers may take. What a step takes is estimated; a
# measured one took up to a third more (docs/decisions.md).
SHARE = 0.7
# A step of fewer bytes is never divided, and a training of such steps asks nobody for memory: a
# process that has imported torch takes several times as much.
LEAST = 2**26
# Times the largest tensor, that a backward pass needs beside what the forward pass has left for it:
# a gradient that comes in, one that goes out, and scratch of a convolution.
LARGEST = 4
_PROBE = 2  # examples of which memory is counted; one may be too few for a batch norm


@dataclass(frozen=True)
class Step:
    """The memory of an update of one run.

    Attributes:
        example: Bytes for each example of a batch; None: it could not be counted.
        weights: Bytes of weights, gradient, moments and what an update needs beside them.
        whole: Whether it needs the whole batch at a time, as batch norm does.
        unit: Examples of which a part of a batch holds a multiple.
    """

    example: int | None
    weights: int
    whole: bool
    unit: int

    def bytes(self, examples: int) -> int:
        """Of a step with so many examples at a time; 0 if it could not be counted."""
        return 0 if self.example is None else self.weights + examples * self.example


def memory_of(compute: ComputeConfig) -> int | None:
    """Bytes for the lanes of all workers; None: a fraction of the free memory."""
    return None if compute.memory == "auto" else int(compute.memory * 2**30)


def micro_batch_of(
    column: Column, workload: Workload, compute: ComputeConfig, *, keep: bool = False
) -> int | None:
    """Most examples of a column's batches that `loop` computes at a time; None: all.

    That is what the settings say, or what the column was given earlier, or what fits now, which is
    remembered with ``keep``.

    Raises:
        UserError: The model cannot be built for these images, or batches would have to be divided
            that it needs as a whole.
    """
    m, ranks = _share(column, workload, compute), compute.ranks
    if (size := compute.micro_batch_at(m)) is None or m == 1:
        return None
    if size != "auto":
        return _allowed(column, workload, size, m)
    if step_of(column, workload).bytes(m) <= LEAST:
        return None
    by = count(workload.workers, "worker") if ranks == 1 else count(ranks, "rank")
    name = f"{name_of(column, workload.device)} by loop, {by}"
    if (past := known().choices.get(name)) is not None:
        return Method(**past).micro_batch
    found = _fitting(column, workload, memory_of(compute), m)
    if keep:
        learn(choices={name: Method("loop", micro_batch=found)})
    return found


def _share(column: Column, workload: Workload, compute: ComputeConfig) -> int:
    """Examples of a batch that a process computes.

    Raises:
        UserError: Batches cannot be divided among so many ranks.
    """
    if compute.ranks == 1:
        return column.batch_size
    step = step_of(column, workload)
    return share_of(column, compute.ranks, own=column.batch_size if step.whole else step.unit)


def _allowed(column: Column, workload: Workload, size: int, m: int) -> int:
    """A micro-batch that the settings name.

    Raises:
        UserError: The model needs the whole batch, or other parts of it.
    """
    found = f"compute.micro_batch: found {size} at batch size {column.batch_size}"
    _refuse_whole(column, workload, found, "auto", m)
    if size % (unit := _unit(column, workload)):
        raise UserError(
            f"{found} with a BN batch size of {unit}, allowed: a multiple of {unit}, or auto"
        )
    return size


def _fitting(column: Column, workload: Workload, budget: int | None, m: int) -> int | None:
    """The largest of a batch's halves, quarters, … that fits into memory; None: all of it.

    Args:
        column: The column.
        workload: Its workload.
        budget: Bytes for the steps of all workers; None: a fraction of the free memory.
        m: Examples of a batch, or of a rank's share of it.

    Raises:
        UserError: More is needed than is free, and the model needs the whole batch.
    """
    step, free = step_of(column, workload), _free(column, workload)
    needed, unit = step.bytes(m), _unit(column, workload)
    room = int(SHARE * free) if budget is None else budget // workload.workers
    if needed <= room:
        return None
    if step.whole or unit >= m:
        if needed > free:
            _refuse_whole(column, workload, _lacking(m, needed, free), "a smaller batch size", m)
        return None
    units = -(-m // unit)
    while step.bytes(units * unit) > room and units > 1:
        units = -(-units // 2)
    return units * unit if units * unit < m else None


def step_of(column: Column, workload: Workload) -> Step:
    """What an update of one of a column's runs takes.

    Raises:
        UserError: The model cannot be built for these images.
    """
    run, few = column.runs[0], _PROBE  # what an example takes does not depend on m
    settings = run.settings
    if settings.bn_batch_size:  # nor on the BN batch
        settings = settings.model_copy(update={"bn_batch_size": few})
    any_run = replace(run, settings=settings, batch_size=few, base_lr=1.0, seed=0)
    return _step(any_run, replace(workload, batch_size=few, lanes=1, device="cpu", workers=1))


def _unit(column: Column, workload: Workload) -> int:
    """Examples that have to be computed together: the BN batch of ghost batch norm."""
    sizes = [run.settings.bn_batch_size for run in column.runs]
    if all(sizes):
        return math.lcm(*filter(None, sizes))
    return step_of(column, workload).unit  # of a model that has its own


def _refuse_whole(column: Column, workload: Workload, found: str, other: str, m: int) -> None:
    """Refuse to divide a batch, or a rank's share of m, that is normalised as a whole.

    Raises:
        UserError: It is; ``other`` is allowed instead.
    """
    from smallbatch.engines.micro import WAY_OUT

    why, way_out = "", WAY_OUT
    if step_of(column, workload).whole:
        why = f"norm {column.runs[0].settings.norm} takes statistics from all of a batch at once"
    elif (unit := _unit(column, workload)) >= m:
        all_of = "all of it" if m == column.batch_size else f"all of a rank's {m} examples"
        why, way_out = f"a BN batch size of {unit} is {all_of}", "a smaller bn_batch_size"
    if why:
        raise UserError(f"{found}; {why}, so that none is divided; allowed: {way_out}, or {other}")


def _lacking(m: int, needed: int, free: int) -> str:
    return (
        f"compute.micro_batch: found auto; a batch of {m} needs {needed / 2**30:.2f} GiB of memory "
        f"in each worker, where {free / 2**30:.2f} GiB are free"
    )


def _free(column: Column, workload: Workload) -> int:
    """Bytes that are free for each worker, once the images have their memory."""
    counts, augment = column.dataset.meta.counts, column.runs[0].settings.augment
    images = 4 * math.prod(workload.image) * (sum(counts.values()) + augment * counts["train"])
    batch = 0
    if column.streamed:  # a batch as it was decoded, normalised, and laid out for a GPU
        images, batch = 0, 9 * math.prod(workload.image) * column.batch_size
    if workload.device == "cpu":
        return max(0, (free_memory() - images) // workload.workers - batch)
    import torch

    torch.cuda.empty_cache()  # memory that an earlier column used is free again
    found = range(len(machine.gpus()))
    return max(0, min(torch.cuda.mem_get_info(i)[0] for i in found) - images - batch)


@cache
def _step(run: Run, workload: Workload) -> Step:
    import torch

    from smallbatch.engines.loop import initial_model
    from smallbatch.engines.resident import load_resident
    from smallbatch.models.own import generators_kept
    from smallbatch.models.population import needs_whole_batch, together_in_parts
    from smallbatch.protocol.optimiser import MOMENTS

    data = load_resident(noise(workload, 1), augment=False, device=torch.device("cpu"))
    model = initial_model(run, data, weights=False)
    with generators_kept():
        example = _example_bytes(model, run, workload)
    trained = sum(it.numel() for it in model.parameters() if it.requires_grad)
    weights = 4 * trained * (3 + MOMENTS[run.settings.optimizer])
    return Step(example, weights, needs_whole_batch(model), together_in_parts(model))


def _example_bytes(model: nn.Module, run: Run, workload: Workload) -> int | None:
    import torch

    from smallbatch.engines.loop import arithmetic
    from smallbatch.engines.update_memory import saved_for_backward
    from smallbatch.models.population import together_in_parts

    def saved(examples: int) -> list[int]:
        images = torch.randn(examples, *workload.image)
        labels = torch.zeros(examples, dtype=torch.long)
        return [it.nbytes() for it in saved_for_backward(model, images, labels).values()]

    # Of ghost batch norm several sub-batches: it keeps other tensors than for one.
    unit = together_in_parts(model)
    probe = 2 * unit if unit > 1 else _PROBE
    try:
        with arithmetic(run.settings.precision, torch.device("cpu")):
            few, more = saved(probe), saved(2 * probe)
        # What does not grow is not of an example, such as weights that autocast has copied.
        each = [(two - one) // probe for one, two in zip(few, more, strict=True)]
    except (UserError, Stopped, Stopping):
        raise
    except (Exception, SystemExit):  # noqa: BLE001 - it is tried again, and told of, as it trains
        return None
    return sum(each) + LARGEST * max(each, default=0)
