"""Models are tried on the prepared images before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from smallbatch.config.params import Params, parse_compute, parse_params
from smallbatch.errors import UserError
from smallbatch.pipeline.fits import check_batch_sizes, check_kept, check_micro_batch, check_models
from tests.noise import make_dataset


def params_of(model: str, dataset: dict[str, Any] | None = None, **settings: Any) -> Params:
    study = {"model": model, "norm": "batch", "epochs": 1, "weight_decay": 0.0, **settings}
    own = {"name": "own", "source": "image_folder", "path": "img"}
    return parse_params(
        {
            "dataset": own | (dataset or {}),
            "grid": {"studies": ["s"], "batch_sizes": [4, 8], "base_lrs": [0.1], "seeds": 1},
            "studies": {"s": study, "unused": {**study, "model": "levit_128s"}},
        },
        "params.yaml",
    )


def check(model: str, size: tuple[int, int], **settings: Any) -> None:
    meta = make_dataset(n=4, test=2, size=size, channels=3).meta
    check_models(params_of(model, **settings), meta)


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


def test_a_model_is_tried_on_its_own_images() -> None:
    with pytest.raises(UserError, match=r"^studies\.s\.model: timm's 'levit_128s' does not take"):
        check("levit_128s", (24, 24))
    check("levit_128s", (24, 24), input="timm")


@pytest.mark.parametrize("model", ["resnet8", "tests.own_model:build"])
def test_models_that_timm_knows_no_images_of(model: str) -> None:
    line = rf"^studies\.s\.input: found timm with model '{model}', allowed: with models of timm"
    with pytest.raises(UserError, match=line):
        check_kept(params_of(model, input="timm"), 256, print)


def test_what_needs_images_that_are_kept_encoded() -> None:
    with pytest.raises(UserError, match=r"^studies\.s\.input: found timm .* prepared as pixels"):
        check_kept(params_of("test_resnet", input="timm"), None, print)
    short = params_of("test_resnet", {"short_side": 40})
    with pytest.raises(UserError, match=r"^dataset\.short_side: found 40 with images .* as pixels"):
        check_kept(short, None, print)
    check_kept(short, 40, print)
    check_kept(params_of("test_resnet"), None, print)


@pytest.mark.parametrize(
    ("model", "enough"), [("inception_v3", 342), ("resnet50", 236), ("test_resnet", 169)]
)  # 299 / 0.875, 224 / 0.95, 160 / 0.95
def test_a_model_that_sees_more_than_is_kept(model: str, enough: int) -> None:
    params, said = params_of(model, input="timm"), list[str]()
    check_kept(params, enough, said.append)
    assert said == []
    check_kept(params, enough - 1, said.append)
    [line] = said
    assert line.startswith(f"warning: studies.s.input: {model} sees ")
    assert f"of a short side of {enough - 1} the middle has " in line
    assert line.endswith(f"; dataset.short_side: {enough} keeps as many")


def test_batch_sizes_above_the_training_images() -> None:
    params = params_of("resnet8")
    check_batch_sizes(params, Path("my.yaml"), 8)
    line = (
        r"^my\.yaml: grid\.batch_sizes: found 8, allowed: at most the 7 training examples of own$"
    )
    with pytest.raises(UserError, match=line):
        check_batch_sizes(params, Path("my.yaml"), 7)


@pytest.mark.parametrize("model", ["resnet8", "test_resnet"])
def test_batches_that_no_study_allows_to_divide(model: str) -> None:
    def tried(micro_batch: int | str, short_side: int | None = None, **settings: Any) -> None:
        params = params_of(model, {"image_size": 32}, **settings)
        compute = {"micro_batch": micro_batch, "device": "cpu", "workers": 1}
        check_micro_batch(params.model_copy(update={"compute": parse_compute(compute, "")}), 8,
                          short_side)  # fmt: skip

    batch = r"^compute\.micro_batch: found 2 at batch size 8; norm batch takes statistics from all"
    for side in (None, 40):
        with pytest.raises(UserError, match=batch):
            tried(2, side)
    ghost = (
        r"^compute\.micro_batch: found 3 at batch size 8 with a BN batch size of 2, allowed: a mul"
    )
    with pytest.raises(UserError, match=ghost):
        tried(3, norm="ghost", bn_batch_size=2)
    tried(2, norm="ghost", bn_batch_size=2)
    tried("auto")
    tried(8)


def test_a_micro_batch_that_suits_one_of_two_studies() -> None:
    params = params_of("resnet8")
    ghost = params.studies["s"].model_copy(update={"norm": "ghost", "bn_batch_size": 2})
    compute = parse_compute({"micro_batch": 2, "device": "cpu", "workers": 1}, "")
    grid = params.grid.model_copy(update={"studies": ("s", "unused")})
    two = {"grid": grid, "studies": params.studies | {"unused": ghost}, "compute": compute}
    check_micro_batch(params.model_copy(update=two), 8, None)
    with pytest.raises(UserError, match=r"^compute\.micro_batch: found 2"):
        check_micro_batch(params.model_copy(update={"compute": compute}), 8, None)
