"""The images that a measurement trains on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smallbatch.config.params import DatasetConfig
from smallbatch.data.prepared import Dataset
from smallbatch.data.split import Images, Labels
from smallbatch.errors import UserError
from smallbatch.placement.workload import TEST_IMAGES, as_dataset

MOST = 4096  # most images that are read; a measurement that needs more repeats them
SOURCES = ("digits", "cifar10", "noise")


@dataclass(frozen=True)
class Pictures:
    """Images, uint8 (N, C, H, W), and labels, int64 (N,), of a named data set."""

    name: str
    images: Images
    labels: Labels
    classes: int

    def dataset(self, count: int) -> Dataset:
        """``count`` training images and some test images; starts again if there are too few."""
        rows = np.arange(count + TEST_IMAGES) % len(self.labels)
        return as_dataset(self.images[rows], self.labels[rows], self.classes)


def load(source: str, *, path: Path | None, size: int | None) -> Pictures:
    """Read the images of a source.

    Args:
        source: One of SOURCES.
        path: The folder of CIFAR-10's parquet files, if that is the source.
        size: Height and width in pixels to resize to; noise has 32 by default.

    Raises:
        UserError: The images do not exist.
    """
    if source == "noise":
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (MOST, 3, size or 32, size or 32), dtype=np.uint8)
        return Pictures(source, images, np.arange(MOST, dtype=np.int64) % 10, 10)
    from smallbatch.data.sources import open_source

    raw = {"name": source, "source": source, "image_size": size}
    if source == "cifar10" and path is not None:
        raw |= {"source": "parquet", "path": str(path)}
    opened = open_source(DatasetConfig.model_validate(raw), Path("data"))
    rows = np.arange(len(opened.train.labels))[:MOST]
    if not len(rows):
        raise UserError(f"{opened.train.where}: found no images")
    labels = opened.train.labels[rows]
    return Pictures(source, opened.train.read(rows), labels, len(opened.classes))
