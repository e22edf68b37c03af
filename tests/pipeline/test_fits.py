"""Models are tried on the prepared images before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from smallbatch.config.params import parse_params
from smallbatch.errors import UserError
from smallbatch.pipeline.fits import check_models
from tests.noise import make_dataset


def check(model: str, size: tuple[int, int], **settings: Any) -> None:
    study = {"model": model, "norm": "batch", "epochs": 1, "weight_decay": 0.0, **settings}
    params = parse_params(
        {
            "dataset": {"name": "own", "source": "image_folder", "path": "img"},
            "grid": {"studies": ["s"], "batch_sizes": [4, 8], "base_lrs": [0.1], "seeds": 1},
            "studies": {"s": study, "unused": {**study, "model": "levit_128s"}},
        },
        "params.yaml",
    )
    check_models(params, make_dataset(n=4, test=2, size=size, channels=3).meta)


def test_a_model_that_takes_squares_only() -> None:
    line = r"^studies\.s\.model: timm's 'levit_128s' does not take images of 3×24×40 "
    with pytest.raises(UserError, match=line):
        check("levit_128s", (24, 40))


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("alexnet", {}),
        ("test_resnet", {}),
        ("test_resnet", {"norm": "ghost", "bn_batch_sizes": [2, 4]}),
    ],
)
def test_models_that_take_any_images(model: str, settings: dict[str, Any]) -> None:
    check(model, (24, 40), **settings)


def test_a_norm_that_the_model_cannot_have() -> None:
    with pytest.raises(UserError, match=r"^studies\.s\.norm: 'none' is not possible"):
        check("test_resnet", (24, 40), norm="none")
