"""Images gathered by Triton's kernel against torch's operations."""

from __future__ import annotations

import pytest
import torch

from smallbatch.engines.lanes.inputs import Tables
from smallbatch.engines.lanes.triton import inputs
from smallbatch.engines.resident import load_resident
from smallbatch.protocol.run import Run
from tests.engines.lanes.test_trainer import study
from tests.engines.lanes.triton.tensors import DEVICE
from tests.noise import make_dataset


@pytest.mark.parametrize("augment", [True, False])
@pytest.mark.parametrize("size", [5, 33, (4, 9)])
def test_images_and_labels_are_torchs_bit_for_bit(
    augment: bool, size: int | tuple[int, int]
) -> None:
    data = load_resident(make_dataset(n=9, size=size), augment=augment, device=DEVICE)
    runs = [Run(study(augment=augment), "f", 4, lr, seed) for seed in (0, 1) for lr in (0.1, 0.2)]
    mine, theirs = (Tables(runs, data, torch.float32, fused) for fused in (True, False))
    for start in (0, 2):
        (first, last), same = (tables.load(start) for tables in (mine, theirs))
        assert (first, last) == same == (start, start + 2)
        for _ in range(last - first):
            (one, labels), (other, expected) = mine.next(), theirs.next()
            assert torch.equal(one.images, other.images)
            assert torch.equal(labels, expected)
            assert labels.shape == (2, 4)
            for tables in (mine, theirs):
                tables.counter += 1


def test_the_trial_before_first_use_passes() -> None:
    assert inputs.agrees(DEVICE)
