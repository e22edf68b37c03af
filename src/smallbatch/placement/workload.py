"""What decides how fast a column trains, and the methods to train it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from smallbatch.config.study import Optimizer, StudyConfig
from smallbatch.data.prepared import Dataset, Meta
from smallbatch.engines.kinds import Engine, Kernels

TEST_IMAGES = 2  # evaluated per epoch: very few, since measured rates are those of training
ENDLESS = 10**6  # epochs, which the clock ends long before a milestone of the schedule


@dataclass(frozen=True)
class Workload:
    """What decides how fast a column trains on a given machine.

    Attributes:
        model: The name of the model.
        norm: Its normalisation.
        bn_batch_size: The sub-batch of ghost batch norm.
        augment: Whether images are cropped and flipped.
        precision: The precision of the arithmetic.
        channels: The channels of an image.
        height: The height of an image in pixels.
        width: The width of an image in pixels.
        classes: The number of classes.
        batch_size: m.
        lanes: The number of runs of the column.
        device: ``cpu`` or ``cuda``.
        workers: The number of processes.
        optimizer: The optimiser.
    """

    model: str
    norm: str
    bn_batch_size: int | None
    augment: bool
    precision: str
    channels: int
    height: int
    width: int
    classes: int
    batch_size: int
    lanes: int
    device: str
    workers: int
    optimizer: Optimizer = "sgd"

    @property
    def image(self) -> tuple[int, int, int]:
        """The channels, height and width of an image."""
        return self.channels, self.height, self.width

    @property
    def key(self) -> str:
        """The workload as text."""
        norm = self.norm if self.bn_batch_size is None else f"{self.norm}{self.bn_batch_size}"
        augment = "augmented " if self.augment else ""
        optimizer = "" if self.optimizer == "sgd" else f"{self.optimizer} "
        return (
            f"{self.model} {norm} {self.precision} {optimizer}{augment}"
            f"{self.channels}x{self.height}x{self.width} {self.classes} classes "
            f"m={self.batch_size} {self.lanes} lanes {self.device} {self.workers} workers"
        )

    def at(self, batch_size: int) -> Workload:
        """The same workload at another batch size."""
        return replace(self, batch_size=batch_size)

    def settings(self, epochs: int = ENDLESS) -> StudyConfig:
        """The settings of a study with this workload; by default it never ends."""
        return StudyConfig.model_validate(
            {
                "model": self.model,
                "norm": self.norm,
                "bn_batch_size": self.bn_batch_size,
                "augment": self.augment,
                "precision": self.precision,
                "epochs": epochs,
                "weight_decay": 1e-4,
                "optimizer": self.optimizer,
            }
        )


@dataclass(frozen=True)
class Method:
    """A way to train a column.

    Attributes:
        engine: ``loop`` or ``stacked``.
        lanes: Most lanes in one worker at a time; None: as many as its memory holds.
        kernels: The kernels of stacked lanes on a GPU; None on a CPU and for `loop`.
        micro_batch: Most examples of a batch at a time, under `loop`; None: all.
    """

    engine: Engine
    lanes: int | None = None
    kernels: Kernels | None = None
    micro_batch: int | None = None

    @property
    def key(self) -> str:
        """The method as text."""
        by = "" if self.kernels is None else f" by {self.kernels} kernels"
        chunks = "" if self.lanes is None else f" in chunks of {self.lanes}"
        parts = "" if self.micro_batch is None else f" in micro-batches of {self.micro_batch}"
        return f"{self.engine}{by}{chunks}{parts}"


@cache
def training_flops_of(workload: Workload) -> int:
    """Floating-point operations to train on one image of a workload."""
    from smallbatch.models import build_model
    from smallbatch.models.flops import forward_flops, training_flops

    model = build_model(
        workload.model,
        workload.norm,
        num_classes=workload.classes,
        in_chans=workload.channels,
        image_size=(workload.height, workload.width),
        seed=0,
        batch_size=max(2, workload.batch_size),
        bn_batch_size=workload.bn_batch_size,
    )
    return training_flops(forward_flops(model, workload.image))


def noise(workload: Workload, count: int) -> Dataset:
    """Random images in a workload's shape; the content of an image does not change its cost."""
    rng = np.random.default_rng(0)
    total = count + TEST_IMAGES
    images = rng.integers(0, 256, (total, *workload.image), dtype=np.uint8)
    labels = rng.integers(0, workload.classes, total)
    return as_dataset(images, labels, workload.classes)


def as_dataset(images: Any, labels: Any, classes: int) -> Dataset:
    """A data set whose test split is the last TEST_IMAGES of ``images``, uint8 (N, C, H, W)."""
    channels, height, width = images.shape[1:]
    n = len(images) - TEST_IMAGES
    meta = Meta(
        name="measurement",
        source="noise",
        classes=tuple(str(i) for i in range(classes)),
        channels=channels,
        height=height,
        width=width,
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        counts={"train": n, "validation": 0, "test": TEST_IMAGES},
        fingerprint="0" * 64,
    )
    return Dataset(meta, images[:n], labels[:n], images[n:], labels[n:])
