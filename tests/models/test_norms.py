"""Batch and ghost batch norm against NumPy."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from smallbatch.models.norms import BatchNorm, GhostBatchNorm, bn_momentum, group_norm

Array = npt.NDArray[np.float64]
EPS = 1e-5


def numpy_batch_norm(x: Array) -> tuple[Array, Array, Array]:
    """Normalised x, mean and unbiased variance per channel (axis 1)."""
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean, biased = x.mean(axes), x.var(axes)
    y = (x - mean.reshape(shape)) / np.sqrt(biased.reshape(shape) + EPS)
    return y, mean, x.var(axes, ddof=1)


@pytest.mark.parametrize("shape", [(8, 3, 4, 5), (8, 3)])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_ghost_batch_norm_is_numpy_per_sub_batch(shape: tuple[int, ...], size: int) -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, shape)
    layer = GhostBatchNorm(3, bn_batch_size=size, momentum=0.3).double()
    parts = [x[start : start + size] for start in range(0, 8, size)]
    expected = [numpy_batch_norm(part) for part in parts]
    share = np.array([len(part) / 8 for part in parts])
    mean = sum(w * m for w, (_, m, _) in zip(share, expected, strict=True))
    var = sum(w * v for w, (_, _, v) in zip(share, expected, strict=True))

    y = layer(torch.from_numpy(x)).detach().numpy()

    np.testing.assert_allclose(y, np.concatenate([part for part, _, _ in expected]), atol=1e-12)
    np.testing.assert_allclose(layer.get_buffer("running_mean"), 0.3 * np.asarray(mean), atol=1e-12)
    np.testing.assert_allclose(
        layer.get_buffer("running_var"), 0.7 + 0.3 * np.asarray(var), atol=1e-12
    )


@pytest.mark.parametrize("size", [4, 3])
def test_ghost_gradients_are_those_of_separate_batch_norms(size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4, dtype=torch.double)
    target = torch.randn_like(x)
    gradients: list[list[torch.Tensor | None]] = []
    ghost = GhostBatchNorm(3, bn_batch_size=size).double()
    plain = nn.BatchNorm2d(3).double()
    for layer in (ghost, plain):
        layer.weight.data = torch.tensor([1.0, 2.0, -0.5], dtype=torch.double)
        leaf = x.clone().requires_grad_()
        y = layer(leaf) if layer is ghost else torch.cat([plain(part) for part in leaf.split(size)])
        ((y - target) ** 2).sum().backward()
        gradients.append([leaf.grad, layer.weight.grad, layer.bias.grad])
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("shape", [(8, 3, 4, 4), (8, 3)])
def test_one_sub_batch_equals_torchs_batch_norm_exactly(size: int, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    torchs = nn.BatchNorm2d(3) if len(shape) == 4 else nn.BatchNorm1d(3)
    for layer in (GhostBatchNorm(3, bn_batch_size=size), BatchNorm(3)):
        torchs.reset_running_stats()
        torchs.train()
        for _ in range(3):
            assert torch.equal(layer(x), torchs(x))
        assert torch.equal(layer.get_buffer("running_mean"), torchs.get_buffer("running_mean"))
        assert torch.equal(layer.get_buffer("running_var"), torchs.get_buffer("running_var"))
        assert torch.equal(layer.eval()(x), torchs.eval()(x))


def test_ghost_evaluates_with_running_statistics() -> None:
    layer = GhostBatchNorm(2, bn_batch_size=2).eval()
    x = torch.randn(6, 2, 3, 3)
    torch.testing.assert_close(layer(x), x / (1 + EPS) ** 0.5)
    assert torch.equal(layer.get_buffer("running_mean"), torch.zeros(2))


def test_state_survives_a_round_trip_without_metadata() -> None:
    """Weights come back from safetensors as a plain dict."""
    layer = GhostBatchNorm(2, bn_batch_size=2)
    layer(torch.randn(4, 2, 3, 3))
    other = BatchNorm(2)
    other.load_state_dict(dict(layer.state_dict()))
    assert torch.equal(other.get_buffer("running_var"), layer.get_buffer("running_var"))


def test_momentum_window_is_constant_in_examples() -> None:
    assert bn_momentum(128) == pytest.approx(0.1)
    assert bn_momentum(256) == pytest.approx(0.19)
    assert (1 - bn_momentum(2)) ** 64 == pytest.approx(0.9)


def test_group_norm_has_eight_channels_per_group_where_possible() -> None:
    assert group_norm(16).num_groups == 2
    assert group_norm(12).num_groups == 1
