"""Initial weights against ones written from docs/random-numbers.md, and both against literals."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch

from smallbatch.models import build_model
from tests.models.twin_weights import he_weights, started, twister_words
from tests.protocol.test_stream_twin import PAGE

# Twice what float32 was seen to lose: a share of the layer's standard deviation.
ROUNDING = 4e-6

RESNET8 = [
    (16, 3, 3, 3),
    (16, 16, 3, 3), (16, 16, 3, 3),
    (32, 16, 3, 3), (32, 32, 3, 3),
    (64, 32, 3, 3), (64, 64, 3, 3),
    (10, 64),
]  # fmt: skip
ALEXNET = [
    (16, 1, 5, 5), (48, 16, 3, 3), (96, 48, 3, 3), (64, 96, 3, 3), (64, 64, 3, 3),
    (256, 1024), (256, 256), (7, 256),
]  # fmt: skip

# Seed, shape of the first layer, and its first four weights.
GOLDEN = [
    pytest.param(
        ("resnet8", 0, RESNET8), [-0.306415, -0.313633, -0.068199, -0.118087], id="resnet8"
    ),
    pytest.param(
        ("alexnet", 9_999, ALEXNET), [-0.481740, -0.129280, 0.470708, 0.335550], id="alexnet"
    ),
]


def test_the_twins_mt19937_gives_the_published_answer() -> None:
    """The C++ standard's, [rand.predef]: the 10,000th word under the seed 5489."""
    [word] = islice(twister_words(started(5489)), 9_999, 10_000)
    assert word == 4123659995


@pytest.mark.parametrize(("case", "first"), GOLDEN)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_product_and_twin_give_the_same_weights(
    case: tuple[str, int, list[tuple[int, ...]]], first: list[float], norm: str
) -> None:
    name, seed, shapes = case
    model = build_model(
        name, norm, num_classes=shapes[-1][0], in_chans=shapes[0][1], image_size=32,
        seed=seed, batch_size=8,
    )  # fmt: skip
    # Weights have two indices or more, biases and norms have one.
    found = [p.detach().numpy() for p in model.parameters() if p.ndim > 1]
    expected = he_weights(seed, shapes)
    assert [weight.shape for weight in found] == shapes
    for weight, other in zip(found, expected, strict=True):
        deviation = math.sqrt(2 / math.prod(weight.shape[1:]))
        np.testing.assert_allclose(weight, other, rtol=0, atol=ROUNDING * deviation)
    np.testing.assert_allclose(found[0].ravel()[:4], first, atol=2e-6)
    np.testing.assert_allclose(expected[0].ravel()[:4], first, atol=1e-6)
    for key, value in model.named_parameters():
        if value.ndim == 1:
            expect = 1.0 if norm == "batch" and key.endswith("weight") else 0.0
            assert torch.all(value == expect), key


def test_the_example_of_the_page_is_the_twins() -> None:
    weights = he_weights(0, RESNET8)[0].ravel()[:4]
    written = ", ".join(f"{weight:.6f}" for weight in weights).replace("-", "−")
    assert f"3 channels | {written} |" in PAGE.read_text()
