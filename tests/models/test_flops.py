"""Operations per image against sums over the layers, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from smallbatch.models import build_model
from smallbatch.models.flops import forward_flops, training_flops


def macs_resnet(n: int, size: int, channels: int, classes: int) -> int:
    """Multiply-adds of the CIFAR ResNet of depth 6n + 2; size is even twice."""
    full, half, quarter = size**2, (size // 2) ** 2, (size // 4) ** 2
    total = 9 * channels * 16 * full + 2 * n * 9 * 16 * 16 * full
    total += 9 * 16 * 32 * half + (2 * n - 1) * 9 * 32 * 32 * half
    total += 9 * 32 * 64 * quarter + (2 * n - 1) * 9 * 64 * 64 * quarter
    return total + 64 * classes


@pytest.mark.parametrize(("model", "n"), [("resnet8", 1), ("resnet20", 3)])
@pytest.mark.parametrize("norm", ["none", "batch", "group"])
def test_resnets(model: str, n: int, norm: str) -> None:
    built = build_model(
        model, norm, num_classes=10, in_chans=3, image_size=32, seed=0, batch_size=4
    )
    built.train()
    assert forward_flops(built, (3, 32, 32)) == 2 * macs_resnet(n, 32, 3, 10)
    assert built.training


@pytest.mark.parametrize("model", ["resnet8", "alexnet"])
def test_torchs_counter_agrees(model: str) -> None:
    built = build_model(model, num_classes=7, in_chans=3, image_size=20, seed=0, batch_size=4)
    with FlopCounterMode(display=False) as counter:
        built(torch.zeros(1, 3, 20, 20))
    assert forward_flops(built, (3, 20, 20)) == counter.get_total_flops()


def test_of_images_that_are_no_squares() -> None:
    """By hand, at 8×32: a ResNet-8's are those of any image of 256 pixels whose sides halve."""
    built = build_model(
        "resnet8", num_classes=10, in_chans=3, image_size=(8, 32), seed=0, batch_size=4
    )
    assert forward_flops(built, (3, 8, 32)) == 2 * macs_resnet(1, 16, 3, 10)


def test_training_takes_two_more_products_of_the_same_size() -> None:
    assert training_flops(7) == 21


def test_the_alexnet() -> None:
    """SAME convolutions of 5, 3, 3, 3, 3; pools of stride 2 after the 1st, 2nd and 5th."""
    built = build_model(
        "alexnet", "none", num_classes=10, in_chans=3, image_size=32, seed=0, batch_size=4
    )
    macs = 25 * 3 * 16 * 32**2 + 9 * 16 * 48 * 16**2
    macs += 9 * (48 * 96 + 96 * 64 + 64 * 64) * 8**2
    macs += 64 * 4**2 * 256 + 256 * 256 + 256 * 10
    assert forward_flops(built, (3, 32, 32)) == 2 * macs
