"""A column placed and trained in one call, as a command does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smallbatch import durable
from smallbatch.config.params import ComputeConfig
from smallbatch.execution.column import train_column
from smallbatch.placement.placement import place
from smallbatch.protocol.column import Column


def place_and_train(
    column: Column, directory: Path, *, compute: ComputeConfig, **more: Any
) -> None:
    """Place a column and train it; ``more`` goes to `train_column`."""
    seconds = compute.checkpoint_seconds
    placement = place(column, compute)
    train_column(column, directory, placement=placement, checkpoint_seconds=seconds, **more)


def checkpoints(root: Path) -> set[Path]:
    """All of them below a folder, also while others write and remove some."""
    return {path for path in durable.files_below(root) if path.suffix == ".checkpoint"}
