"""The images that a timm model was designed for: their size, statistics and crop."""

from __future__ import annotations

from typing import NamedTuple

from smallbatch.config.model_names import own_model, registered_name
from smallbatch.errors import UserError
from smallbatch.models.paper import PAPER_MODELS


class Input(NamedTuple):
    """What `timm.data.resolve_data_config` says of a model.

    Attributes:
        side: Height and width of an image in pixels.
        mean, std: Of pixels / 255, per channel, by which images are normalised.
        crop_ratio: The side of the middle that is evaluated, as a part of the short side.
        interpolation: ``bilinear`` or ``bicubic``.
    """

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float
    interpolation: str


def own_input(model: str) -> Input:
    """The input of a timm model.

    Raises:
        UserError: The model is none of timm's, or not for square colour images.
    """
    if registered_name(model) in PAPER_MODELS or own_model(model):
        raise UserError(f"input: found timm with model {model!r}, allowed: with models of timm")
    import timm
    from timm.data import resolve_data_config

    config = timm.get_pretrained_cfg(model)
    found = resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
    channels, height, width = found["input_size"]
    if channels != 3 or height != width:
        raise UserError(
            f"input: timm's {model!r} is for images of {channels}×{height}×{width}, allowed: "
            "models for square images of three channels"
        )
    # Models that were trained with a filter by chance are evaluated with either.
    bicubic = found["interpolation"] == "bicubic"
    return Input(
        height, tuple(found["mean"]), tuple(found["std"]), float(found["crop_pct"]),
        "bicubic" if bicubic else "bilinear",
    )  # fmt: skip
