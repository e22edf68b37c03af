"""The first step: how fast this machine trains the model at each batch size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from smallbatch.errors import UserError, first_line
from smallbatch.pipeline.advise.size import CANDIDATES, SEEDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smallbatch.config.params import ComputeConfig
    from smallbatch.config.study import StudyConfig

SECONDS = 0.5  # of measuring one batch size
_LR = 2.0**-30  # nothing diverges at it


@dataclass(frozen=True)
class Speed:
    """What training at one batch size costs.

    Attributes:
        images_per_second: Of all lanes of a race's first rung together.
        images_per_second_alone: Of one training by the loop engine, on one core or the GPU.
        by_vectors: Whether lanes are computed in vectors, of which a few fill no more than one.
        memory_bytes: Of one lane, as estimated.
        share: Of the cores that both measurements could have used, the smaller; see
            :class:`~speed.share.CoreShare`.
    """

    images_per_second: float
    images_per_second_alone: float
    by_vectors: bool
    memory_bytes: int | None
    share: float = 1.0


def calibrate(
    study: StudyConfig,
    image: tuple[int, int, int],
    classes: int,
    batch_sizes: Sequence[int],
    compute: ComputeConfig,
) -> dict[int, Speed]:
    """Measure the speed at each batch size, on random images.

    Args:
        study: The settings of a training.
        image: Channels, height and width in pixels.
        classes: The number of classes.
        batch_sizes: m.
        compute: Where to train.

    Raises:
        UserError: The device does not exist, or the model cannot be built for these images.
    """
    import torch

    from smallbatch.engines.lanes import lane_bytes
    from smallbatch.engines.resident import load_resident
    from smallbatch.placement.placement import place, resolve_device, workload_of
    from smallbatch.placement.workload import Method, Workload, noise
    from smallbatch.protocol.column import plan_column
    from smallbatch.speed.rate import measure

    found: dict[int, Speed] = {}
    for m in batch_sizes:
        channels, height, width = image
        shape = Workload(
            model=study.model, norm=study.norm, bn_batch_size=study.bn_batch_size,
            augment=study.augment, precision=study.precision, channels=channels, height=height,
            width=width, classes=classes, batch_size=m, lanes=SEEDS * CANDIDATES,
            device=resolve_device(compute.device), workers=1, optimizer=study.optimizer,
        )  # fmt: skip
        images = noise(shape, m)
        column = plan_column(
            "advise", study, images, batch_size=m,
            base_lrs=[_LR * (1 + i) for i in range(CANDIDATES)], seeds=range(SEEDS),
        )  # fmt: skip
        placement = place(column, compute, keep=False)
        try:
            together = measure(workload_of(column, compute), placement.method, seconds=SECONDS)
            by_loop = Method("loop", micro_batch=placement.method.micro_batch)
            alone = measure(replace(shape, lanes=1), by_loop, seconds=SECONDS)
        except RuntimeError as error:
            raise UserError(
                f"{study.model}: cannot be trained on random images at m = {m} and a learning rate "
                f"near 0: {first_line(error)}"
            ) from None
        resident = load_resident(images, augment=False, device=torch.device("cpu"))
        found[m] = Speed(
            images_per_second=max(1, len(placement.devices)) * together.images_per_second,
            images_per_second_alone=alone.images_per_second,
            by_vectors=placement.native is not None,
            memory_bytes=lane_bytes(column.runs[0], resident),
            share=min(together.share, alone.share),
        )
    return found
