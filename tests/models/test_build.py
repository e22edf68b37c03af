"""Built models: sizes, initial weights, momentum, and timm's own models."""

import math

import pytest
import torch
from torch import nn

from smallbatch.errors import UserError
from smallbatch.models import build_model, has_batch_norm
from smallbatch.models.norms import GhostBatchNorm

CONVS_AND_FCS = (nn.Conv2d, nn.Linear)


def build(
    model: str,
    norm: str = "none",
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    image_size: int | tuple[int, int] = 32,
    seed: int = 0,
    batch_size: int = 8,
    bn_batch_size: int | None = None,
) -> nn.Module:
    return build_model(
        model,
        norm,
        num_classes=num_classes,
        in_chans=in_chans,
        image_size=image_size,
        seed=seed,
        batch_size=batch_size,
        bn_batch_size=bn_batch_size,
    )


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "norm", "count"),
    [
        ("alexnet", "none", 472_794),
        ("resnet8", "batch", 75_290),
        ("resnet20", "batch", 269_722),
        ("resnet32", "batch", 464_154),
        # A bias in place of every batch norm's weight and bias: fewer by the convs' outputs.
        ("resnet8", "none", 75_290 - (16 + 2 * (16 + 32 + 64))),
        # Batch norm adds a weight per output; the bias it brings replaces the layer's own.
        ("alexnet", "batch", 472_794 + (16 + 48 + 96 + 64 + 64) + 2 * 256),
        ("alexnet", "batch_conv", 472_794 + (16 + 48 + 96 + 64 + 64)),
        ("resnet8", "group", 75_290),
    ],
)
def test_parameter_counts_of_the_paper(model: str, norm: str, count: int) -> None:
    assert parameters(build(model, norm)) == count


def test_ghost_has_the_parameters_of_batch() -> None:
    ghost, batch = build("resnet20", "ghost", bn_batch_size=4), build("resnet20", "batch")
    assert parameters(ghost) == 269_722
    assert list(ghost.state_dict()) == list(batch.state_dict())


@pytest.mark.parametrize("model", ["resnet8", "alexnet"])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
@pytest.mark.parametrize(
    ("side", "channels"), [(1, 1), (5, 2), (8, 1), (28, 1), (32, 3), (33, 4), (64, 3)]
)
def test_every_size_and_channel_count(model: str, norm: str, side: int, channels: int) -> None:
    module = build(model, norm, image_size=side, in_chans=channels, num_classes=7, batch_size=2)
    assert module.training
    assert module(torch.randn(2, channels, side, side)).shape == (2, 7)
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in module.parameters())


@pytest.mark.parametrize("model", ["resnet8", "resnet20", "alexnet"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_he_initialisation(model: str, norm: str) -> None:
    """Each layer's mean and standard deviation lie within 5 standard errors of N(0, 2/fan_in)."""
    for name, layer in build(model, norm, seed=4).named_modules():
        if not isinstance(layer, CONVS_AND_FCS):
            continue
        weight = layer.weight.detach().double()
        n, fan_in = weight.numel(), weight[0].numel()
        std = math.sqrt(2 / fan_in)
        assert abs(weight.mean().item()) < 5 * std / math.sqrt(n), name
        assert abs(weight.std().item() / std - 1) < 5 / math.sqrt(2 * n), name
        assert layer.bias is None or layer.bias.abs().max() == 0


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, CONVS_AND_FCS)
    }


@pytest.mark.parametrize("model", ["resnet8", "alexnet"])
def test_weights_depend_on_the_seed_only(model: str) -> None:
    reference = weights(build(model, seed=1))
    torch.manual_seed(99)
    others = [
        build(model, seed=1),
        build(model, "batch", seed=1, batch_size=64),
        build(model, "ghost", seed=1, bn_batch_size=2),
        build(model, "group", seed=1),
    ]
    for other in others:
        assert weights(other).keys() == reference.keys()
        assert all(torch.equal(weights(other)[name], reference[name]) for name in reference)
    different = weights(build(model, seed=2))
    assert not any(torch.equal(different[name], reference[name]) for name in reference)


def test_layers_of_one_shape_differ() -> None:
    model = weights(build("resnet20"))
    assert not torch.equal(model["blocks.0.conv1"], model["blocks.0.conv2"])


@pytest.mark.parametrize("model", ["resnet8", "resnet18"])
def test_global_random_state_is_left_alone(model: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build(model, "batch")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [2, 128, 2048])
@pytest.mark.parametrize("model", ["resnet8", "alexnet", "resnet18"])
def test_momentum_and_eps(model: str, batch_size: int) -> None:
    layers = [
        layer
        for layer in build(model, "batch", batch_size=batch_size).modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    assert len(layers) == {"resnet8": 7, "alexnet": 7, "resnet18": 20}[model]
    assert all(layer.momentum == 1 - 0.9 ** (batch_size / 128) for layer in layers)
    assert all(layer.eps == 1e-5 for layer in layers)


def test_batch_conv_leaves_the_hidden_layers_bare() -> None:
    model = build("alexnet", "batch_conv")
    norms = [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms == [f"features.{index}.norm" for index in range(5)]
    assert model.get_submodule("fc1.fc").get_parameter("bias").shape == (256,)


def test_ghost_of_the_whole_batch_is_plain_batch_norm() -> None:
    images = torch.randn(8, 3, 32, 32)
    for model in ("resnet8", "alexnet"):
        ghost, plain = build(model, "ghost", bn_batch_size=8), build(model, "batch")
        assert torch.equal(ghost(images), plain(images))
        for name, value in ghost.state_dict().items():
            assert torch.equal(value, plain.state_dict()[name])


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 1), (32, 3)])
def test_timms_resnet18_trains_on_small_images(side: int, channels: int) -> None:
    model = build("resnet18", "batch", image_size=side, in_chans=channels, batch_size=2)
    assert model.training
    assert model(torch.randn(2, channels, side, side)).shape == (2, 10)


def test_timm_model_is_a_function_of_the_seed() -> None:
    one, same, other = (build("resnet18", "batch", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.get_parameter("conv1.weight"), same.get_parameter("conv1.weight"))
    assert not torch.equal(one.get_parameter("conv1.weight"), other.get_parameter("conv1.weight"))


def test_a_tag_names_weights_and_no_other_model() -> None:
    plain, tagged = build("test_resnet", "batch"), build("test_resnet.r160_in1k", "batch")
    assert all(torch.equal(value, tagged.state_dict()[key]) for key, value in
               plain.state_dict().items())  # fmt: skip


def test_timm_model_with_an_image_size_of_its_own() -> None:
    model = build("vit_tiny_patch16_224", "none", image_size=32)
    assert not has_batch_norm(model)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_timm_model_with_ghost_batch_norm() -> None:
    model = build("resnet18", "ghost", bn_batch_size=4)
    ghosts = [layer for layer in model.modules() if isinstance(layer, GhostBatchNorm)]
    assert len(ghosts) == 20
    assert all(g.bn_batch_size == 4 and g.momentum == 1 - 0.9 ** (8 / 128) for g in ghosts)
    whole = build("resnet18", "ghost", bn_batch_size=8)
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(whole(images), build("resnet18", "batch")(images))
    assert not torch.equal(whole(images), model(images))


def test_timm_model_with_group_norm() -> None:
    model = build("resnet18", "group")
    assert not has_batch_norm(model)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("model", "norm", "line"),
    [
        ("resnet18", "none", r"norm: 'none' .*'resnet18'.*; allowed: batch, ghost, group$"),
        ("mobilenetv3_small_050", "none", r"norm: 'none' .*; allowed: batch$"),
        ("mobilenetv3_small_050", "group", r"norm: 'group' .*; allowed: batch$"),
        ("vit_tiny_patch16_224", "group", r"norm: 'group' .*; allowed: none, batch$"),
        ("resnet18", "batch_conv", r"norm: 'batch_conv' .*alexnet only"),
        ("vit_tiny_patch16_224", "batch", r"model: timm's 'vit_tiny_patch16_224' .*3×12×12"),
    ],
)
def test_timm_models_that_cannot_be(model: str, norm: str, line: str) -> None:
    side = 12 if model.startswith("vit") and norm == "batch" else 32
    with pytest.raises(UserError, match=line) as error:
        build(model, norm, image_size=side)
    assert "\n" not in str(error.value)


def test_bad_input_is_refused_before_anything_is_built() -> None:
    with pytest.raises(UserError, match="did you mean 'alexnet'"):
        build("alexnets")
    with pytest.raises(UserError, match="batch_size: found 1"):
        build("alexnet", "batch", batch_size=1)


@pytest.mark.parametrize(
    ("model", "norm", "size"),
    [
        ("resnet8", "none", (24, 40)), ("alexnet", "none", (24, 40)), ("alexnet", "batch", (40, 7)),
        ("test_vit", "none", (32, 64)), ("test_resnet", "batch", (24, 40)),
    ],
)  # fmt: skip
def test_images_need_not_be_squares(model: str, norm: str, size: tuple[int, int]) -> None:
    module = build(model, norm, image_size=size, in_chans=3, num_classes=7, batch_size=2)
    assert module(torch.randn(2, 3, *size)).shape == (2, 7)


def test_a_square_may_be_told_by_one_number() -> None:
    one, two = (build("alexnet", image_size=size, seed=2) for size in (20, (20, 20)))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_a_model_for_squares_says_which_images_it_does_not_take() -> None:
    with pytest.raises(UserError, match=r"'levit_128s' does not take images of 3×24×40 "):
        build("levit_128s", "batch", image_size=(24, 40), in_chans=3, batch_size=2)
