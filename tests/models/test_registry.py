"""The models as timm's users meet them."""

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

from smallbatch.errors import UserError
from smallbatch.models.alexnet import AlexNet
from smallbatch.models.norms import BatchNorm, GhostBatchNorm
from smallbatch.models.registry import default_cfgs
from smallbatch.models.resnet import ResNet

NAMES = ["smallbatch_resnet8", "smallbatch_resnet20", "smallbatch_resnet32", "smallbatch_alexnet"]


def test_listed_and_never_as_pretrained() -> None:
    assert sorted(timm.list_models("smallbatch_*")) == sorted(NAMES) == sorted(default_cfgs)
    assert timm.list_models("smallbatch_*", pretrained=True) == []


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} has no pretrained weights"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_timm_interface(name: str) -> None:
    model = timm.create_model(name, num_classes=7, in_chans=2).eval()
    assert isinstance(model, ResNet | AlexNet)
    images = torch.randn(3, 2, 32, 32)
    features = model.forward_features(images)
    pre_logits = model.forward_head(features, pre_logits=True)
    logits = model(images)
    assert features.shape[:2] == (3, model.num_features)
    assert pre_logits.shape == (3, model.head_hidden_size)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(model.get_classifier()(pre_logits), logits)
    cfg: Any = model.default_cfg
    assert cfg["input_size"] == (3, 32, 32)
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()


@pytest.mark.parametrize("name", ["smallbatch_resnet8", "smallbatch_alexnet"])
def test_reset_classifier(name: str) -> None:
    model = timm.create_model(name).eval()
    assert isinstance(model, ResNet | AlexNet)
    images = torch.randn(2, 3, 32, 32)
    model.reset_classifier(4)
    assert model(images).shape == (2, 4)
    assert model.num_classes == 4
    assert not model.get_classifier().get_parameter("bias").any()
    model.reset_classifier(0)
    assert model(images).shape == (2, model.head_hidden_size)
    with pytest.raises(ValueError, match="global_pool: found 'max'"):
        model.reset_classifier(4, "max")


def test_norm_arguments() -> None:
    ghost = timm.create_model(
        "smallbatch_resnet8", norm="ghost", bn_batch_size=4, bn_momentum=0.25
    ).get_submodule("norm1")
    assert isinstance(ghost, GhostBatchNorm)
    assert (ghost.bn_batch_size, ghost.momentum, ghost.eps) == (4, 0.25, 1e-5)
    plain = timm.create_model("smallbatch_resnet8").get_submodule("norm1")
    assert type(plain) is BatchNorm
    assert plain.momentum == 0.1
    group = timm.create_model("smallbatch_resnet8", norm="group").get_submodule("norm1")
    assert isinstance(group, nn.GroupNorm)
    assert group.num_channels // group.num_groups == 8


def test_bad_norm_arguments() -> None:
    with pytest.raises(UserError, match=r"'batch_conv' .* alexnet only"):
        timm.create_model("smallbatch_resnet20", norm="batch_conv")
    with pytest.raises(UserError, match="bn_batch_size: none given"):
        timm.create_model("smallbatch_alexnet", norm="ghost")
    with pytest.raises(UserError, match="did you mean 'group'"):
        timm.create_model("smallbatch_alexnet", norm="groop")


def test_follows_the_global_seed_as_timm_models_do() -> None:
    weights: list[torch.Tensor] = []
    for _ in range(2):
        torch.manual_seed(3)
        model = timm.create_model("smallbatch_resnet8")
        weights.append(model.get_submodule("conv1").get_parameter("weight"))
    assert torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("first", ["timm", "smallbatch.models.registry"])
def test_registers_in_either_import_order(first: str) -> None:
    second = {"timm": "smallbatch.models.registry", "smallbatch.models.registry": "timm"}[first]
    program = (
        f"import {first}, {second}\n"
        "timm.create_model('smallbatch_resnet20', num_classes=10, in_chans=3)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
