"""Whether batch sizes and models of the studies suit the images of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from smallbatch.errors import UserError

if TYPE_CHECKING:
    from smallbatch.config.params import Params
    from smallbatch.data.prepared import Dataset, Meta


def check_batch_sizes(params: Params, file: Path, train: int) -> None:
    """Refuse a batch size above the number of training images.

    Raises:
        UserError: The grid has one.
    """
    largest = max(params.grid.batch_sizes)
    if largest > train:
        raise UserError(
            f"{file}: grid.batch_sizes: found {largest}, allowed: at most the {train} training "
            f"examples of {params.dataset.name}"
        )


def check_kept(params: Params, short_side: int | None, say: Callable[[str], object]) -> None:
    """Refuse settings that do not go with how images are kept, and warn of too small ones.

    Args:
        params: The checked params file.
        short_side: The largest short side of the images in pixels; None: they are kept as pixels.
        say: Takes a line for each study whose model sees more pixels than are kept.

    Raises:
        UserError: `dataset.short_side` or `input: timm` with images that are kept as pixels, or
            the latter with a model that is none of timm's, or not for square colour images.
    """
    if short_side is None and params.dataset.short_side is not None:
        raise UserError(
            f"dataset.short_side: found {params.dataset.short_side} with images that are kept as "
            "pixels; allowed: with storage encoded only"
        )
    for name in params.running:
        study = params.studies[name]
        if study.input is None:
            continue
        from smallbatch.models.inputs import own_input

        try:
            own = own_input(study.model)
        except UserError as error:
            raise UserError(f"studies.{name}.{error}") from None
        if short_side is None:
            raise UserError(
                f"studies.{name}.input: found timm with images that are prepared as pixels, "
                "allowed: with dataset.storage: encoded"
            )
        needed = math.ceil(round(own.side / own.crop_ratio, 6))
        if needed > short_side:
            say(
                f"warning: studies.{name}.input: {study.model} sees {own.side} pixels, but of a "
                f"short side of {short_side} the middle has {round(short_side * own.crop_ratio)}; "
                f"dataset.short_side: {needed} keeps as many"
            )


def check_micro_batch(params: Params, train: int, short_side: int | None) -> None:
    """Refuse a `compute.micro_batch` that suits no column of the grid, before classes are known.

    Args:
        params: The checked params file.
        train: The number of training images.
        short_side: The largest short side of the images in pixels; None: they are kept as pixels.

    Raises:
        UserError: None of the larger batches can be divided so.
    """
    compute, sizes = params.compute, params.grid.batch_sizes
    if compute.micro_batch == "auto" or max(sizes) <= compute.micro_batch:
        return
    from smallbatch.placement.memory import micro_batch_of
    from smallbatch.placement.placement import workload_of
    from smallbatch.protocol.column import plan_column

    data = _without_images(params, train, short_side)
    refused: UserError | None = None
    for name, m in params.columns:
        if m <= compute.micro_batch:
            continue
        refused = None
        try:
            column = plan_column(
                name, params.studies[name], data, batch_size=m, base_lrs=[2.0**-10], seeds=[0]
            )
            micro_batch_of(column, workload_of(column, compute), compute)
        except UserError as error:
            refused = error
        if refused is None or not str(refused).startswith("compute.micro_batch: "):
            return  # that is possible; or cannot be told yet
    if refused is not None:
        raise refused


def _without_images(params: Params, train: int, short_side: int | None) -> Dataset:
    """What is known of a data set before it is prepared, with placeholders for the rest."""
    import numpy as np

    from smallbatch.data.prepared import Dataset, Meta

    config, side = params.dataset, params.dataset.image_size or 32
    meta = Meta(
        config.name, config.source, ("a", "b"), 3, side, side, (0.0,) * 3, (1.0,) * 3,
        {"train": train, "validation": 0, "test": 1}, "", short_side=short_side,
    )  # fmt: skip
    pixels, labels = np.zeros((0, 3, side, side), np.uint8), np.zeros(0, np.int64)
    return Dataset(meta, pixels, labels, pixels, labels)


def check_models(params: Params, meta: Meta) -> None:
    """Build every model that is run, but for the paper's, which take images of any size.

    Pretrained weights in a file of the project's are tried too.

    Raises:
        UserError: A model does not take such images, or not with its norm.
    """
    from smallbatch.config.model_files import FROM_TIMM
    from smallbatch.engines.kinds import has_layers

    for name in params.running:
        study = params.studies[name]
        # Those of timm are only fetched for a training.
        weights = None if study.pretrained == FROM_TIMM else study.pretrained
        if has_layers(study.model) and not weights:
            continue
        from smallbatch.models import build_model
        from smallbatch.models.inputs import own_input

        batch_size = max(params.grid.batch_sizes)
        own = own_input(study.model).side if study.input else None
        try:
            build_model(
                study.model, study.norm, num_classes=len(meta.classes), in_chans=meta.channels,
                image_size=own or (meta.height, meta.width), seed=0, batch_size=batch_size,
                bn_batch_size=study.at(batch_size)[0].bn_batch_size, pretrained=weights,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"studies.{name}.{error}") from None
