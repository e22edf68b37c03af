"""Which engine trains a column, and how its runs are split over workers and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from smallbatch.config import EngineSetting, StudyConfig
from smallbatch.model_names import ALIASES

Engine = Literal["loop", "stacked"]
T = TypeVar("T")

# Without a budget of their own, lanes may take this part of the memory that is free at the start.
MEMORY_SHARE = 0.5


# Pixels of one lane's batch up to which `auto` stacks lanes on a CPU. Measured: images/s of the
# stacked engine over the loop's, ResNet-8 with batch norm, 2 single-thread processes of 13 lanes:
# 8×8   m = 2: 4.7, 8: 2.4, 32: 1.4, 128: 1.1, 512: 0.6
# 16×16 m = 8: 1.3, 32: 0.9
# 32×32 m = 2: 1.3 to 1.7, 8: 0.8, 32: 0.7, 128: 0.6
# AlexNet, ResNet-20 and the other norms cross over at the same place. With larger batches oneDNN's
# convolutions outrun matrix products of 16 to 64 rows.
STACKED_PIXELS = 2**12


@dataclass(frozen=True)
class Choice:
    """An engine, and one line about it where it is not the one asked for.

    ``lanes`` is how many lanes a worker computes at a time at most; None: what memory holds.
    """

    engine: Engine
    remark: str | None = None
    lanes: int | None = None


def has_layers(model: str) -> bool:
    """Whether a model has layers over K lanes (`stacked_layers`): the paper's models do."""
    return model in ALIASES or model in ALIASES.values()


def choose(
    asked: EngineSetting,
    study: StudyConfig,
    *,
    batch_size: int,
    pixels: int,
    lanes: int,
    device: str,
    vmap_works: Callable[[], bool],
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
    """
    if asked == "loop":
        return Choice("loop")
    if study.precision == "bf16":
        return Choice("loop", "the stacked engine has no bf16; the loop engine trains it")
    if asked == "auto" and not stacked_is_faster(study.model, batch_size, pixels, lanes, device):
        return Choice("loop")
    if has_layers(study.model):
        return Choice("stacked")
    if vmap_works():
        return Choice("stacked", f"{study.model}: lanes by torch.vmap, it has no stacked layers")
    reason = f"{study.model} has no stacked layers and fails under torch.vmap"
    return Choice("loop", f"{reason}; the loop engine trains it")


def stacked_is_faster(model: str, batch_size: int, pixels: int, lanes: int, device: str) -> bool:
    """Whether stacked lanes beat plain runs, by what was measured."""
    if lanes == 1 or device == "cuda":  # on a GPU neither engine has been measured yet
        return False
    return has_layers(model) and batch_size * pixels <= STACKED_PIXELS


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


def free_memory() -> int:
    """Bytes of memory that are free, or could be at once."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
