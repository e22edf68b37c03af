"""What timm states of its models' images."""

from __future__ import annotations

import pytest

from smallbatch.errors import UserError
from smallbatch.models.inputs import own_input


@pytest.mark.parametrize(
    ("model", "side", "mean", "ratio"),
    [  # from timm's own tables of models
        ("resnet50", 224, 0.485, 0.95),
        ("inception_v3", 299, 0.5, 0.875),
        ("vit_tiny_patch16_224", 224, 0.5, 0.9),
        ("resnet10t", 176, 0.485, 0.875),
    ],
)
def test_a_model_of_timm_has_the_input_that_timm_states(
    model: str, side: int, mean: float, ratio: float
) -> None:
    found = own_input(model)
    assert (found.side, found.mean[0], found.crop_ratio) == (side, mean, ratio)
    assert found.interpolation == "bicubic"


@pytest.mark.parametrize("model", ["resnet8", "smallbatch_alexnet", "mine:net"])
def test_other_models_have_none(model: str) -> None:
    with pytest.raises(UserError, match="allowed: with models of timm"):
        own_input(model)
