"""Which engine trains a column, and how its runs are split over workers and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from smallbatch.engines.kinds import serves
from smallbatch.placement.workload import Method

if TYPE_CHECKING:
    from smallbatch.config.params import EngineSetting
    from smallbatch.config.study import StudyConfig

T = TypeVar("T")

# If the user sets no memory, lanes may take this fraction of the memory that is free at the start.
MEMORY_SHARE = 0.5
# Less on a GPU, where a captured step needs more memory, which earlier steps may still hold.
CAPTURED_SHARE = 0.3


# With at least so many runs, `auto` stacks a column on a CPU at any batch size: the native kernels
# take as long for one lane as for a whole vector, of up to sixteen.
STACKED_LANES = 8
# With fewer runs, `auto` stacks a column if a batch has at most so many pixels: then dispatch costs
# a plain run more than the vector's empty places cost the kernels (docs/performance.md).
STACKED_PIXELS = 2**10


@dataclass(frozen=True)
class Choice:
    """A method, and one line about it if the engine is not the one asked for."""

    method: Method
    remark: str | None = None


def choose(
    asked: EngineSetting,
    study: StudyConfig,
    *,
    batch_size: int,
    pixels: int,
    lanes: int,
    device: str,
    vmap_works: Callable[[], bool],
    triton_works: Callable[[], bool],
) -> Choice:
    """Pick the engine of a column.

    Args:
        asked: ``compute.engine`` of the params file.
        study: The study's settings.
        batch_size: m.
        pixels: Height · width of an image.
        lanes: The number of runs of the column.
        device: ``cpu`` or ``cuda``.
        vmap_works: Tries the model under `torch.vmap`; called only for models that need it.
        triton_works: Tries the Triton kernels on the GPU; called only where they may be used.
    """
    if asked == "loop" or (asked == "auto" and lanes == 1):
        return Choice(Method("loop"))
    from smallbatch.engines.lanes import native
    from smallbatch.engines.lanes.native.compiler import compiler

    if (by := serves(study, device)) is None:
        remark = "the stacked engine has bf16 on a GPU alone, for models with stacked layers"
        return Choice(Method("loop"), f"{remark}; the loop engine trains it")
    if asked == "auto" and not stacked_is_faster(
        study, batch_size, pixels, lanes, device, triton_works
    ):
        # A machine without a compiler is nothing to tell of every time; one that fails is.
        why = native.left_out(study, device) if compiler() else None
        remark = why and f"the loop engine trains it, without the kernels in C++: {why}"
        return Choice(Method("loop"), remark)
    if by != "vmap":
        kernels = ("triton" if triton_works() else "grouped") if device == "cuda" else None
        why = native.left_out(study, device)
        remark = why and f"lanes by torch, without the kernels in C++: {why}"
        return Choice(Method("stacked", kernels=kernels), remark)
    if vmap_works():
        remark = f"{study.model}: lanes by torch.vmap, it has no stacked layers"
        return Choice(Method("stacked"), remark)
    reason = f"{study.model} has no stacked layers and fails under torch.vmap"
    return Choice(Method("loop"), f"{reason}; the loop engine trains it")


def stacked_is_faster(
    study: StudyConfig,
    m: int,
    pixels: int,
    lanes: int,
    device: str,
    triton_works: Callable[[], bool],
) -> bool:
    """Whether stacked lanes are likely to beat plain runs; used if nothing was measured."""
    if lanes == 1:
        return False
    by = serves(study, device)
    if device == "cuda":  # docs/performance-gpu.md
        return by == "layers" and triton_works()
    return by == "native" and (lanes >= STACKED_LANES or m * pixels <= STACKED_PIXELS)


def deal(runs: Sequence[T], workers: int, lanes_at_most: int, vector: int = 1) -> list[list[T]]:
    """Split a column's runs into chunks, whose lanes are computed together.

    The chunks leave as few places of their vectors empty as they can. There are no more of them
    than if all were of the same size, and each, in this order, has no more vectors: so none of the
    workers, who take a chunk after another, has more vectors to compute. Among such chunks the most
    even are taken. Fewer chunks than workers are possible: two half empty vectors, each on a
    worker, take as long as one. Runs that diverge early change this, and are not foreseen.

    Runs with large learning rates often diverge and end early. They are spread over the chunks, as
    each chunk takes every n-th run, or of chunks that differ in size a larger one more often.

    Args:
        runs: The runs, in order of learning rate.
        workers: The number of workers; each should get the same number of chunks.
        lanes_at_most: The number of lanes that fit into a worker's memory.
        vector: The number of lanes that cost as much as one alone; see `Placement.vector_of`.

    Returns:
        The chunks, the largest first, each in the order of ``runs``.
    """
    if not runs:
        return []
    rounds = -(-len(runs) // (workers * lanes_at_most))
    sizes = _sizes(len(runs), min(len(runs), rounds * workers), lanes_at_most, vector)
    turns = sorted((turn / size, i) for i, size in enumerate(sizes) for turn in range(size))
    chunks: list[list[T]] = [[] for _ in sizes]
    for run, (_, i) in zip(runs, turns, strict=True):
        chunks[i].append(run)
    return chunks


def _sizes(lanes: int, chunks: int, lanes_at_most: int, vector: int) -> list[int]:
    """The number of lanes of each chunk, none without; of at most so many chunks."""

    def room(vectors: int) -> int:
        return min(lanes_at_most, vectors * vector)

    def hold_all(vectors: int) -> bool:
        each, more = divmod(vectors, chunks)
        return more * room(each + 1) + (chunks - more) * room(each) >= lanes

    # Every chunk gets the same number of vectors, but the first ones one more. The fewest that hold
    # all lanes are more than full ones would be where the memory's limit cuts a chunk's last one.
    each, more = divmod(next(filter(hold_all, count(-(-lanes // vector)))), chunks)
    if lanes // chunks < (small := room(each)):
        return _evenly(lanes, chunks)
    # The others are full, and what they leave is for those with one vector more.
    full = [small] * (chunks - more) if small else []
    return _evenly(lanes - sum(full), more) + full


def _evenly(lanes: int, chunks: int) -> list[int]:
    return [lanes // chunks + (i < lanes % chunks) for i in range(chunks)]
