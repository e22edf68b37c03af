"""Which engine trains a column, and how its runs are split over workers and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from smallbatch.engines.kinds import serves
from smallbatch.placement.workload import Method

if TYPE_CHECKING:
    from smallbatch.config.params import EngineSetting, StudyConfig

T = TypeVar("T")

# Without a budget of their own, lanes may take this part of the memory that is free at the start.
MEMORY_SHARE = 0.5
# On a GPU less: a captured step has memory of its own, beside what the steps before it have left.
CAPTURED_SHARE = 0.3


# Runs of a column from which `auto` stacks them on a CPU, whatever the batch: the native kernels
# take as long for one lane of eight as for all, and two workers share the column.
STACKED_LANES = 8
# With fewer, stacked lanes win while a lane's batch has no more pixels than this: dispatch costs a
# plain run more than empty lanes cost the kernels (docs/performance.md).
STACKED_PIXELS = 2**10


@dataclass(frozen=True)
class Choice:
    """A method, and one line about it where it is not the engine asked for."""

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
        study: the study's settings.
        batch_size: m.
        pixels: of one channel of an image.
        lanes: runs of the column.
        device: ``cpu`` or ``cuda``.
        vmap_works: tries the model under `torch.vmap`; called only for models that need it.
        triton_works: tries the kernels in Triton on the GPU; called only where they may be used.
    """
    if asked == "loop":
        return Choice(Method("loop"))
    if (by := serves(study, device)) is None:
        remark = "the stacked engine has bf16 on a GPU alone, for models with stacked layers"
        return Choice(Method("loop"), f"{remark}; the loop engine trains it")
    if asked == "auto" and not stacked_is_faster(
        study, batch_size, pixels, lanes, device, triton_works
    ):
        return Choice(Method("loop"))
    if by != "vmap":
        kernels = ("triton" if triton_works() else "grouped") if device == "cuda" else None
        return Choice(Method("stacked", kernels=kernels))
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
    """Whether stacked lanes beat plain runs where this machine's speed is not known."""
    if lanes == 1:
        return False
    by = serves(study, device)
    if device == "cuda":  # docs/performance-gpu.md
        return by == "layers" and triton_works()
    return by == "native" and (lanes >= STACKED_LANES or m * pixels <= STACKED_PIXELS)


def deal(runs: Sequence[T], workers: int, lanes_at_most: int) -> list[list[T]]:
    """Split a column's runs into chunks whose lanes are computed together.

    Runs are dealt like cards, so that those with large learning rates, which often diverge and end
    early, are spread over the chunks.

    Args:
        runs: in order of learning rate.
        workers: that take chunks; each should get the same number.
        lanes_at_most: that fit into a worker's memory.
    """
    rounds = -(-len(runs) // (workers * lanes_at_most))
    chunks = min(len(runs), rounds * workers)
    return [list(runs[i::chunks]) for i in range(chunks)]
