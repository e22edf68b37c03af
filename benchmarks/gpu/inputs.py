"""What the measurements run on: images, settings and runs, without the package's dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smallbatch.data.prepared import Dataset, Meta
from smallbatch.protocol.run import Run


@dataclass(frozen=True)
class Settings:
    """A study's settings, as `smallbatch.config.study.StudyConfig` has them."""

    model: str = "resnet8"
    norm: str = "none"
    bn_batch_size: int | None = None
    augment: bool = False
    epochs: int = 1
    weight_decay: float = 1e-4
    milestones: tuple[float, ...] = (0.5, 0.75)
    lr_decay: float = 0.1
    warmup: float = 0.0
    precision: str = "float32"
    optimizer: str = "sgd"
    momentum: float | None = None
    betas: tuple[float, float] | None = None
    beta2_examples: float | None = None
    eps: float | None = None
    schedule: str = "step"
    pretrained: str | None = None
    freeze: str | None = None

    def examples_per_rate(self, batch_size: int) -> int:
        """As of a StudyConfig."""
        return 1 if self.optimizer == "adamw" else batch_size


def make_runs(settings: Settings, m: int, base_lrs: Sequence[float], seeds: int = 1) -> list[Run]:
    """A column, the lanes of a seed next to each other."""
    study: Any = settings
    return [Run(study, "benchmark", m, lr, seed) for seed in range(seeds) for lr in base_lrs]


def load_images(folder: Path | None, train: int, test: int, size: int = 32) -> Dataset:
    """CIFAR-10 from Parquet shards, or noise of the same shape where there is no folder.

    Args:
        folder: with `train-*.parquet` and `test-*.parquet`.
        train: training images to take at most.
        test: test images to take at most.
        size: of the square that is cut out of the images' corner.
    """
    if folder is None:
        rng = np.random.default_rng(0)
        arrays = [rng.integers(0, 256, (n, 3, 32, 32), np.uint8) for n in (train, test)]
        labels = [rng.integers(0, 10, n) for n in (train, test)]
        name, classes = "noise", tuple(str(i) for i in range(10))
    else:
        from smallbatch.data.parquet import open_parquet

        source = open_parquet(folder, "img", "label", None)
        arrays, labels = [], []
        for split, count in ((source.train, train), (source.test, test)):
            rows = np.arange(min(count, len(split.labels)))
            arrays.append(split.read(rows))
            labels.append(split.labels[rows])
        name, classes = "cifar10", source.classes
    arrays = [np.ascontiguousarray(array[:, :, :size, :size]) for array in arrays]
    pixels = arrays[0] / np.float32(255)
    meta = Meta(
        name=name,
        source="parquet",
        classes=classes,
        channels=3,
        height=size,
        width=size,
        mean=tuple(pixels.mean((0, 2, 3), dtype=np.float64).tolist()),
        std=tuple(pixels.std((0, 2, 3), dtype=np.float64).tolist()),
        counts={"train": len(labels[0]), "validation": 0, "test": len(labels[1])},
        fingerprint="benchmark",
    )
    return Dataset(meta, arrays[0], labels[0], arrays[1], labels[1])
