"""Which runs of a column are computed together, and in what state an earlier attempt left them.

A chunk is a group of runs that are computed together; each chunk has its own checkpoints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from smallbatch.engines.lanes import lane_bytes
from smallbatch.machine import free_memory, gpu_indices
from smallbatch.placement.placement import Placement
from smallbatch.placement.rules import CAPTURED_SHARE, MEMORY_SHARE, deal
from smallbatch.records.checkpoints import Checkpoints, ChunkPlan
from smallbatch.records.schema import Environment
from smallbatch.text import count

if TYPE_CHECKING:
    from smallbatch.config.study import StudyConfig
    from smallbatch.data.encoded import EncodedDataset
    from smallbatch.data.prepared import Dataset
    from smallbatch.engines.batches import BatchSource
    from smallbatch.engines.resident import Resident
    from smallbatch.execution.watch import Watch
    from smallbatch.protocol.run import Run

_OF_PARENT = ("watch", "beat")


@dataclass(frozen=True)
class Job:
    """The runs to train and what they have in common.

    Attributes:
        column: Every run of the column, in order of learning rate.
        missing: The runs to train.
        dataset: The prepared data.
        placement: Where and how to train.
        work: The folder for the runs' records.
        environment: Machine, versions and commit, for the records.
        plan: The runs of each chunk, from this attempt or an earlier one.
        checkpoint_seconds: Seconds between a chunk's checkpoints.
        watch: Knows of reasons to stop; a worker that was not forked has none.
        beat: Shows that this process is alive; to be called regularly. Likewise.
        keep_weights: Whether the records hold the final weights.
    """

    column: Sequence[Run]
    missing: Sequence[Run]
    dataset: Dataset | EncodedDataset
    placement: Placement
    work: Path
    environment: Environment
    plan: ChunkPlan
    checkpoint_seconds: float
    watch: Watch
    beat: Callable[[], None]
    keep_weights: bool = True

    @property
    def workers(self) -> int:
        """The number of worker processes; no more than there are runs."""
        return min(self.placement.workers, len(self.missing))

    @property
    def ranks(self) -> int:
        """The number of processes that train each run together."""
        return self.placement.ranks

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices with a worker each; none if this process trains, or forks of it."""
        if self.ranks > 1:
            return self.placement.devices
        return self.placement.devices[: self.workers] if self.workers > 1 else ()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_PARENT}


@dataclass(frozen=True)
class Chunk:
    """Runs that are computed together, and their checkpoints."""

    runs: Sequence[Run]
    checkpoints: Checkpoints


def plan_chunks(job: Job, data: BatchSource) -> list[list[str]]:
    """Hashes of each chunk's runs, kept for the next attempt.

    The chunks of an earlier attempt that still hold missing runs come first, then new ones for the
    rest.

    Args:
        job: The job.
        data: Images in their final shape, on the kind of device that trains; one is enough.
    """
    runs = {run.hash: run for run in job.column}
    missing = {run.hash for run in job.missing}
    at_most, limited = _lanes_at_most(job, data)
    planned: list[list[str]] = []
    for hashes in job.plan.read():
        fits = len(hashes) <= at_most or not limited
        if fits and missing & set(hashes) and set(hashes) <= runs.keys():
            planned.append(hashes)
    taken = {name for hashes in planned for name in hashes}
    left = [run for run in job.missing if run.hash not in taken]
    groups: dict[StudyConfig, list[Run]] = {}
    for run in left:  # lanes share their settings, so each BN batch size has chunks of its own
        groups.setdefault(run.settings, []).append(run)
    for group in groups.values():
        vector = job.placement.vector_of(group[0], data)
        chunks = deal(group, job.workers, at_most, vector)
        planned += [[run.hash for run in chunk] for chunk in chunks]
    job.plan.write(planned)
    return planned


def open_chunk(job: Job, hashes: Sequence[str], stopping: Callable[[], bool]) -> Chunk:
    """A chunk as it was left; the one who trains it calls this when its turn comes."""
    runs = {run.hash: run for run in job.column}
    missing = {run.hash for run in job.missing}
    folder, fence = job.plan.chunk_folder(hashes), job.plan.fence
    checkpoints = Checkpoints(folder, job.checkpoint_seconds, stopping, fence)
    if checkpoints.saved and missing & set(hashes) - set(checkpoints.saved.runs):
        checkpoints.forget()  # a run ended before this checkpoint, but its record was lost
    alive = checkpoints.saved.runs if checkpoints.saved else hashes
    return Chunk([runs[name] for name in alive], checkpoints)


def tell_resumed(job: Job, planned: Sequence[Sequence[str]]) -> None:
    """Say how many runs go on from checkpoints."""
    runs, updates = 0, set[int]()
    for hashes in planned:
        chunk = open_chunk(job, hashes, lambda: False)
        if chunk.checkpoints.saved:
            runs += len(chunk.runs)
            updates.add(chunk.checkpoints.saved.update)
    if not runs:
        return
    span = sorted({min(updates), max(updates)})
    at = f"update{'s' if len(span) > 1 else ''} {' to '.join(map(str, span))}"
    on = "goes on from its checkpoint" if runs == 1 else "go on from their checkpoints"
    line = f"m={job.column[0].batch_size}: {count(runs, 'run')} {on}, at {at}"
    print(line, file=sys.stderr, flush=True)


def _image_bytes(job: Job) -> int:
    """Most bytes of the images on a device, in float32, where training images may be padded."""
    arrays = cast("Dataset", job.dataset).arrays().values()  # the stacked engine has no others
    pixels = sum(array.size for array in arrays if array.ndim > 1)
    return 4 * pixels * (2 if job.missing[0].settings.augment else 1)


def _lanes_at_most(job: Job, data: BatchSource) -> tuple[int, bool]:
    """Most lanes of a chunk, by a worker's memory, and whether the user set the memory."""
    if job.placement.engine == "loop":
        return 1, False
    if job.placement.memory is not None:
        memory = job.placement.memory // job.workers
    elif job.placement.device == "cuda":
        torch.cuda.empty_cache()  # memory that an earlier column used is free again
        # Each GPU has its own; on several, the workers will put the images there.
        free = min(torch.cuda.mem_get_info(i)[0] for i in gpu_indices(job.devices))
        memory = int(CAPTURED_SHARE * (free - (_image_bytes(job) if job.devices else 0)))
    else:
        memory = int(MEMORY_SHARE * free_memory()) // job.workers
    lanes = memory // lane_bytes(job.missing[0], cast("Resident", data))
    return max(1, min(lanes, job.placement.method.lanes or lanes)), job.placement.memory is not None
