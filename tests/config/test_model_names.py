"""What validate_model accepts and refuses, and what it must not import."""

import subprocess
import sys
import time

import pytest

from smallbatch.config.model_names import ALIASES, NORMS, validate_model
from smallbatch.errors import UserError


@pytest.mark.parametrize("model", [*ALIASES, *ALIASES.values()])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_paper_models_take_every_common_norm(model: str, norm: str) -> None:
    validate_model(model, norm, batch_size=2)


@pytest.mark.parametrize(("batch_size", "bn_batch_size"), [(2, 2), (7, 2), (64, 4), (64, 64)])
def test_ghost_sub_batches(batch_size: int, bn_batch_size: int) -> None:
    if batch_size % bn_batch_size == 1:
        with pytest.raises(UserError, match="last sub-batch of one example"):
            validate_model("resnet8", "ghost", batch_size=batch_size, bn_batch_size=bn_batch_size)
    else:
        validate_model("resnet8", "ghost", batch_size=batch_size, bn_batch_size=bn_batch_size)


def test_typo_gets_the_closest_model() -> None:
    with pytest.raises(UserError, match=r"model: .*'resnt8' \(did you mean 'resnet8'\?\); allowed"):
        validate_model("resnt8")


def test_typo_gets_the_closest_timm_model() -> None:
    with pytest.raises(UserError, match=r"did you mean 'efficientnet_b0'\?"):
        validate_model("eficientnet_b0", "batch")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("resnet18.a9_in1k", "resnet18"),
        ("timm/resnet18.a1_in1k", "resnet18"),
        ("hf_hub:timm/resnet18.a1_in1k", "resnet18"),
        ("hf-hub:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k@main", "vit_base_patch16_224"),
        ("https://huggingface.co/timm/resnet18.a1_in1k/", "resnet18"),
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224"),
        ("convnext_base_in22ft1k", "convnext_base"),
    ],
)
def test_names_of_pretrained_weights_get_their_architecture(name: str, architecture: str) -> None:
    with pytest.raises(UserError, match=rf"\(did you mean '{architecture}'\?\); allowed"):
        validate_model(name, "batch")


def test_a_very_long_name_is_refused_at_once() -> None:
    start = time.process_time()
    with pytest.raises(UserError, match="unknown model"):
        validate_model("resnet" * 20_000, "batch")
    assert time.process_time() - start < 5


def test_timm_model_is_known() -> None:
    validate_model("resnet18", "batch", batch_size=2)


def test_so_is_one_with_the_tag_of_its_weights() -> None:
    validate_model("resnet18.a1_in1k", "batch", batch_size=2)


@pytest.mark.parametrize(
    ("norm", "options", "line"),
    [
        ("bacth", {}, r"norm: unknown norm 'bacth' \(did you mean 'batch'\?\); allowed: none, "),
        ("batch_conv", {}, r"norm: 'batch_conv' .* alexnet only: .*; allowed: none, batch, ghost"),
        ("ghost", {}, r"bn_batch_size: none given; norm 'ghost' needs"),
        ("ghost", {"bn_batch_size": 1}, r"bn_batch_size: found 1;"),
        ("ghost", {"bn_batch_size": 8, "batch_size": 4}, r"bn_batch_size: found 8 with batch_size"),
        ("batch", {"bn_batch_size": 4}, r"bn_batch_size: found 4 with norm 'batch'"),
        ("batch", {"batch_size": 1}, r"batch_size: found 1 with norm 'batch'; allowed: at least 2"),
        ("ghost", {"batch_size": 1, "bn_batch_size": 2}, r"batch_size: found 1 with norm 'ghost'"),
    ],
)
def test_refused_combinations(norm: str, options: dict[str, int], line: str) -> None:
    with pytest.raises(UserError, match=line) as error:
        validate_model("resnet8", norm, **options)
    assert "\n" not in str(error.value)


def test_single_examples_are_fine_without_batch_norm() -> None:
    for norm in ("none", "group"):
        validate_model("alexnet", norm, batch_size=1)


def test_norms_are_the_documented_ones() -> None:
    assert NORMS == ("none", "batch", "batch_conv", "ghost", "group")


def test_checking_a_paper_model_imports_neither_torch_nor_timm() -> None:
    program = (
        "import sys; from smallbatch.config.model_names import validate_model\n"
        "for model in ('resnet8', 'resnet20', 'resnet32', 'alexnet'):\n"
        "    validate_model(model, 'ghost', batch_size=8, bn_batch_size=4)\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
