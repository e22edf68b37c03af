"""The pool's kernels against torch's max pool."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smallbatch.engines.lanes.triton import pool
from smallbatch.models.alexnet import same_max_pool
from tests.engines.lanes.triton.tensors import DEVICE, channels_first, near, noise

SHAPES = [(4, 6), (5, 7), (4, 5), (1, 1), (1, 4), (3, 2)]


def by_torch(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima of (K, m, H, W, C), and the gradient of ``x``."""
    inputs = channels_first(x).flatten(0, 1).requires_grad_()
    y = same_max_pool(inputs)
    y.backward(channels_first(g).flatten(0, 1))
    assert inputs.grad is not None
    back = (t.detach().movedim(1, -1).unflatten(0, x.shape[:2]) for t in (y, inputs.grad))
    return next(back), next(back)


def check(x: Tensor) -> None:
    k, m, h, w, c = x.shape
    g = noise(k, m, -(-h // 2), -(-w // 2), c, seed=1)
    expected, of_x = by_torch(x, g)
    y, won = pool.forward(x)
    assert torch.equal(y.nan_to_num(99), expected.nan_to_num(99))
    # A pixel may win four windows, whose gradients are added in another order.
    torch.testing.assert_close(pool.backward(g, won, x.shape), of_x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("h", "w"), SHAPES)
def test_maxima_and_gradients_are_torchs(h: int, w: int) -> None:
    check(noise(2, 3, h, w, 5))


@pytest.mark.parametrize(("h", "w"), SHAPES)
def test_of_equals_the_first_wins(h: int, w: int) -> None:
    """As after a ReLU, which makes many zeros."""
    check(noise(2, 3, h, w, 5).round().relu())
    check(torch.zeros(2, 1, h, w, 3, device=DEVICE))


def test_more_than_one_block() -> None:
    check(noise(2, 2, 9, 8, 16).round())


@pytest.mark.parametrize("at", [(0, 0), (2, 2), (1, 3), (4, 4)])
def test_nan_wins_its_windows_and_no_others(at: tuple[int, int]) -> None:
    x = noise(2, 2, 5, 5, 3)
    x[1, 0, at[0], at[1], 2] = torch.nan
    check(x)
    y, _ = pool.forward(x)
    assert y[1, 0, ..., 2].isnan().any()
    assert y[0].isfinite().all()
    assert y[1, 1].isfinite().all()
    assert y[1, 0, ..., :2].isfinite().all()


def test_bf16_values_stay_what_they_are() -> None:
    x = noise(2, 2, 5, 4, 3).bfloat16()
    g = noise(2, 2, 3, 2, 3, seed=1).bfloat16()
    y, won = pool.forward(x)
    expected, of_x = by_torch(x.float(), g.float())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y.float(), expected)
    near(pool.backward(g, won, x.shape), of_x, 2**-7)  # the interpreter cuts off, does not round
