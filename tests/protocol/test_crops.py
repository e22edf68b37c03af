"""Crops by chance: where they lie, how large they are, and on what alone they depend."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from smallbatch.protocol.crops import RATIO, SCALE, Crop, centre_crop, random_crop
from tests.protocol.twin_stream import photograph_crop


def theirs(height: int, width: int, count: int) -> np.ndarray:
    """Torchvision's crops (count, 4): top, left, height, width."""
    image = torch.zeros(1, height, width)
    drawn = [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)]
    return np.array(drawn)


def ours(height: int, width: int, count: int) -> np.ndarray:
    return np.array([random_crop(7, 1, i, height, width) for i in range(count)])


@pytest.mark.parametrize(("height", "width"), [(256, 341), (73, 73), (400, 256)])
def test_crops_are_distributed_as_torchvision_s(height: int, width: int) -> None:
    torch.manual_seed(0)
    count = 4000
    a, b = ours(height, width, count), theirs(height, width, count)
    assert (a[:, :2] >= 0).all()
    assert (a[:, 0] + a[:, 2] <= height).all()
    assert (a[:, 1] + a[:, 3] <= width).all()
    error = np.sqrt((a.var(0) + b.var(0)) / count)
    assert (abs(a.mean(0) - b.mean(0)) < 4 * error).all()
    areas = [np.sort(each[:, 2] * each[:, 3]) for each in (a, b)]
    assert abs(areas[0] - areas[1]).max() < 0.04 * height * width


@pytest.mark.parametrize(("height", "width"), [(1000, 9), (9, 1000), (1, 1)])
def test_of_a_shape_that_no_crop_suits_the_middle_is_taken(height: int, width: int) -> None:
    found, known = ours(height, width, 50), theirs(height, width, 50)
    assert {tuple(row) for row in found.tolist()} <= {tuple(row) for row in known.tolist()}


@pytest.mark.parametrize(("height", "width"), [(256, 341), (73, 73), (30, 200), (9, 1000)])
def test_crops_are_those_of_docs_random_numbers(height: int, width: int) -> None:
    for seed, epoch, row in [
        (0, 0, 0),
        (1, 0, 5),
        (2**40, 2, 1_281_166),
        *((3, 4, i) for i in range(30)),
    ]:
        expected = photograph_crop(seed, epoch, row, height, width)
        assert tuple(random_crop(seed, epoch, row, height, width)) == expected


def test_a_crop_depends_on_seed_epoch_and_example_alone() -> None:
    keys = [(seed, epoch, i) for seed in (0, 1) for epoch in (0, 1) for i in (0, 1, 2**33)]
    crops = {key: random_crop(*key, 256, 341) for key in keys}
    assert len(set(crops.values())) == len(keys)
    program = (
        "from smallbatch.protocol.crops import random_crop\n"
        f"print([tuple(random_crop(*key, 256, 341)) for key in {keys[::-1]}])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert eval(told.stdout) == [tuple(crops[key]) for key in keys[::-1]]


def test_the_crops_of_this_protocol() -> None:
    """Those of earlier versions: other ones would be other runs."""
    assert [random_crop(0, 3, i, 256, 341) for i in range(3)] == [
        Crop(58, 24, 155, 131), Crop(5, 58, 167, 141), Crop(141, 51, 111, 94),
    ]  # fmt: skip


def test_the_middle_of_an_image() -> None:
    assert centre_crop(256, 341) == Crop(16, 58, 224, 224)
    assert centre_crop(73, 73) == Crop(4, 4, 64, 64)
    assert centre_crop(1, 5) == Crop(0, 2, 1, 1)
