"""Batch norm over processes: by one process it is torch's, forward, backward and in its counts.

By several it is tested in `tests/engines/test_ranks.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from smallbatch.errors import UserError
from smallbatch.models.norms import BatchNorm
from smallbatch.models.together import Together, normalise_together

ALONE = Together(1, lambda _: None)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (nn.BatchNorm1d, (5, 3)),
        (nn.BatchNorm1d, (5, 3, 4)),
        (nn.BatchNorm2d, (4, 3, 2, 2)),
        (nn.BatchNorm3d, (4, 3, 2, 1, 2)),
        (BatchNorm, (4, 3, 2, 2)),
        (lambda n: nn.BatchNorm2d(n, affine=False), (4, 3, 2, 2)),
        (lambda n: nn.BatchNorm2d(n, track_running_stats=False), (4, 3, 2, 2)),
    ],
)
def test_of_one_process_it_is_torchs(make: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layers = [make(3).double() for _ in range(2)]
    for layer in layers:
        if layer.weight is not None:
            nn.init.uniform_(layer.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
    normalise_together(layers[1], ALONE)
    for _ in range(2):
        x, slope = torch.randn(2, *shape, dtype=torch.float64)
        inputs = [(3 + 2 * x).requires_grad_() for _ in range(2)]
        outputs = [layer(it) for layer, it in zip(layers, inputs, strict=True)]
        torch.testing.assert_close(*outputs)
        for output in outputs:
            (torch.relu_(output) * slope).sum().backward()
        torch.testing.assert_close(*(it.grad for it in inputs))
    one, other = layers
    for name, value in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, msg=name)
    for parameter, its in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(its.grad, parameter.grad)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(one.eval()(x), other.eval()(x))


def test_halves_go_in_and_out_but_are_summed_as_float32() -> None:
    layer = nn.BatchNorm2d(3)
    normalise_together(layer, ALONE)
    x = (100 + torch.randn(64, 3, 8, 8)).bfloat16().requires_grad_()
    output = layer(x)
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    expected = 0.1 * x.detach().double().mean((0, 2, 3))
    assert layer.running_mean is not None
    torch.testing.assert_close(layer.running_mean.double(), expected, rtol=1e-6, atol=0)


def test_a_class_that_may_do_more_is_refused() -> None:
    class More(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match=r"compute.ranks: tests\.models\.\S+ cannot span ranks"):
        normalise_together(More(3), ALONE)
