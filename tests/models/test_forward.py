"""Blocks and whole models against NumPy."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from smallbatch.models import build_model
from smallbatch.models.alexnet import same_max_pool
from smallbatch.models.norms import norm_factory
from smallbatch.models.resnet import BasicBlock

Array = npt.NDArray[np.float64]


def conv(x: Array, layer: nn.Module) -> Array:
    """Cross-correlation, the definition: zero padding of half the kernel."""
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().numpy()
    half, stride = weight.shape[-1] // 2, layer.stride[0]
    padded = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    y = np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight)
    return y if layer.bias is None else y + layer.bias.detach().numpy()[:, None, None]


def batch_norm(x: Array) -> Array:
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5)


def same(x: Array) -> Array:
    return x


def same_pool(x: Array) -> Array:
    """TensorFlow's rule: pad max((out - 1)·2 + 3 - n, 0) in all, the smaller half in front."""
    widths = [(0, 0), (0, 0)]
    for n in x.shape[2:]:
        total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
        widths.append((total // 2, total - total // 2))
    padded = np.pad(x, widths, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows[:, :, ::2, ::2].max((-1, -2))


def block(x: Array, module: BasicBlock, norm: str) -> Array:
    normalise = batch_norm if norm == "batch" else same
    y = np.maximum(normalise(conv(x, module.conv1)), 0)
    y = normalise(conv(y, module.conv2))
    if y.shape != x.shape:
        x = x[:, :, ::2, ::2]
        x = np.concatenate([x, np.zeros_like(y[:, x.shape[1] :])], axis=1)
    return np.maximum(y + x, 0)


def images(*shape: int) -> Array:
    return np.random.default_rng(1).normal(size=shape)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(("in_chans", "stride", "side"), [(4, 1, 5), (2, 2, 6), (2, 2, 5)])
def test_basic_block(norm: str, in_chans: int, stride: int, side: int) -> None:
    torch.manual_seed(0)
    module = BasicBlock(in_chans, 4, stride, norm_factory(norm, None, 0.1)).double()
    x = images(3, in_chans, side, side)
    y = module(torch.from_numpy(x))
    np.testing.assert_allclose(y.detach().numpy(), block(x, module, norm), atol=1e-12)


@pytest.mark.parametrize("height", range(1, 10))
@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_same_pool(height: int, width: int) -> None:
    x = images(2, 3, height, width) - 5.0  # all negative: zero padding would show
    y = same_max_pool(torch.from_numpy(x)).numpy()
    assert y.shape[2:] == (-(-height // 2), -(-width // 2))
    np.testing.assert_array_equal(y, same_pool(x))


def make(model: str, norm: str) -> nn.Module:
    return build_model(
        model, norm, num_classes=5, in_chans=2, image_size=9, seed=0, batch_size=4
    ).double()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_resnet(norm: str) -> None:
    model = make("resnet20", norm)
    x = images(4, 2, 9, 9)
    normalise = batch_norm if norm == "batch" else same
    y = np.maximum(normalise(conv(x, model.get_submodule("conv1"))), 0)
    blocks = list(model.get_submodule("blocks").children())
    assert len(blocks) == 9
    for index, module in enumerate(blocks):
        assert isinstance(module, BasicBlock)
        assert module.conv1.stride == ((2, 2) if index in (3, 6) else (1, 1))
        y = block(y, module, norm)
    fc = model.get_submodule("fc")
    logits = y.mean((2, 3)) @ fc.get_parameter("weight").detach().numpy().T
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), logits, atol=1e-10)


def test_alexnet() -> None:
    model = make("alexnet", "none")
    x = images(4, 2, 9, 9)
    y = x
    for index in range(5):
        y = np.maximum(conv(y, model.get_submodule(f"features.{index}.conv")), 0)
        y = same_pool(y) if index in (0, 1, 4) else y
    y = y.reshape(4, -1)
    for name in ("fc1.fc", "fc2.fc", "fc"):
        y = y @ model.get_submodule(name).get_parameter("weight").detach().numpy().T
        y = np.maximum(y, 0) if name != "fc" else y
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), y, atol=1e-10)


@pytest.mark.parametrize("model", ["resnet8", "alexnet"])
@pytest.mark.parametrize("norm", ["none", "batch", "ghost", "group"])
def test_gradients_reach_every_parameter(model: str, norm: str) -> None:
    """The forward pass overwrites activations in place; autograd must not need them."""
    bn_batch_size = 2 if norm == "ghost" else None
    module = build_model(
        model,
        norm,
        num_classes=5,
        in_chans=1,
        image_size=8,
        seed=0,
        batch_size=6,
        bn_batch_size=bn_batch_size,
    ).double()
    x = torch.from_numpy(images(6, 1, 8, 8))
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    loss = nn.functional.cross_entropy(module(x), target)
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    first = next(module.parameters())
    assert first.grad is not None
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for move in (1e-6, -2e-6):
            first[0, 0, 1, 1] += move
            losses.append(nn.functional.cross_entropy(module(x), target))
    slope = (losses[0] - losses[1]) / 2e-6
    torch.testing.assert_close(slope, first.grad[0, 0, 1, 1], rtol=1e-4, atol=1e-7)
