"""The script that the engines are compared with trains the same network."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from smallbatch.models import build_model
from smallbatch.speed.bench import textbook

COUNTS = {"resnet8": 75_290, "resnet20": 269_722, "resnet32": 464_154}


def options(**changes: Any) -> argparse.Namespace:
    settings: dict[str, Any] = {
        "model": "resnet8", "norm": "batch", "bn_batch_size": None, "batch_size": 4,
        "device": "cpu", "augment": False, "num_workers": 0, "lr": 1e-3, "warm_up": 1,
        "seconds": 0.0, "optimizer": "sgd",
    }  # fmt: skip
    return argparse.Namespace(**(settings | changes))


@pytest.mark.parametrize("model", COUNTS)
def test_timms_parts_make_the_papers_models(model: str) -> None:
    built = textbook.build(options(model=model), 3, (32, 32), 10)
    assert sum(p.numel() for p in built.parameters()) == COUNTS[model]


def test_its_resnet_computes_what_the_packages_does() -> None:
    """With copied weights, in training mode; both list their layers in order of computation."""
    ours = build_model(
        "resnet8", "batch", num_classes=10, in_chans=3, image_size=32, seed=3, batch_size=4
    )
    theirs = textbook.build(options(), 3, (32, 32), 10)
    mine, other = list(ours.parameters()), list(theirs.parameters())
    with torch.no_grad():
        for to, value in zip(other, mine, strict=True):
            to.copy_(value)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(theirs(images), ours(images), rtol=1e-4, atol=1e-5)


def test_the_clock_counts_the_updates_after_the_warm_up() -> None:
    arrays = {
        "images": np.zeros((9, 8, 8, 1), dtype=np.uint8),
        "labels": np.arange(9, dtype=np.int64) % 2,
    }
    arrays["images"][::2] = 255
    chosen = options(augment=True)
    loader = textbook.make_loader(arrays, chosen)
    assert len(loader) == 2  # the incomplete batch is left out
    batch, _ = next(iter(loader))
    assert batch.shape == (4, 1, 8, 8)
    assert batch.dtype == torch.float32
    linear = nn.Linear(64, 2)
    before = linear.weight.detach().clone()
    result = textbook.train(nn.Sequential(nn.Flatten(), linear), loader, chosen)
    assert result["images"] == 4
    assert result["seconds"] > 0
    assert not torch.equal(before, linear.weight)
