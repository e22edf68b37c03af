"""Batch norm's sums over a batch of thousands, forward and backward, against float64.

The tolerance is sixteen roundings of float32 (6e-8 each): by sums whose rounding does not grow with
the batch, errors are at most 6e-7 here; by adding one number after another, up to 1e-4.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smallbatch.config.study import StudyConfig
from smallbatch.engines import lanes as stacked
from smallbatch.engines import loop
from smallbatch.engines.lanes.native.compiler import compiler
from smallbatch.engines.resident import load_resident
from smallbatch.models import build_model, recompute_population_statistics
from smallbatch.models.norms import BatchNorm, GhostBatchNorm, sum_exactly
from smallbatch.protocol.run import Run
from tests.noise import make_dataset

TOLERANCE = 1e-6
CPU = torch.device("cpu")
CHANNELS = 8


@pytest.fixture(autouse=True)
def one_thread() -> Generator[None, None, None]:
    """As the workers have; several threads would each sum a part."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of_another_package() -> nn.Module:
    layer = nn.BatchNorm2d(CHANNELS, momentum=1.0)
    layer.register_forward_pre_hook(sum_exactly)
    return layer


LAYERS = {
    "batch": lambda: BatchNorm(CHANNELS, momentum=1.0),
    "torch's": of_another_package,
    "ghost, halves": lambda: GhostBatchNorm(CHANNELS, 2048, momentum=1.0),
    "ghost, a rest": lambda: GhostBatchNorm(CHANNELS, 3000, momentum=1.0),
}


def noise(m: int, *pixels: int, last: bool = True) -> Tensor:
    """(m, CHANNELS, …) with a mean, channels last in memory as the images of a CPU are."""
    x = torch.randn(m, CHANNELS, *pixels) + 1
    return x.contiguous(memory_format=torch.channels_last) if last and pixels else x


def results(layer: Any, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Statistics and gradients of one pass."""
    x = x.detach().requires_grad_()
    layer(x).backward(g)
    gradients = {"weight": layer.weight.grad, "bias": layer.bias.grad, "x": x.grad}
    var = layer.get_buffer("running_var")
    return {"var": var, "mean": layer.get_buffer("running_mean")} | {
        name: value.detach().clone() for name, value in gradients.items() if value is not None
    }


def assert_exact(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Variances relative to themselves, means to deviations, gradients to their largest number."""
    scales = {name: value.abs().max() for name, value in expected.items()}
    if "var" in expected:
        scales |= {"var": expected["var"], "mean": expected["var"].sqrt()}
    errors = {
        name: float(((got[name] - value) / scales[name]).abs().max())
        for name, value in expected.items()
    }
    assert {name: error for name, error in errors.items() if not error < TOLERANCE} == {}


@pytest.mark.parametrize(
    ("name", "pixels"),
    [(name, pixels) for name in LAYERS for pixels in ((8, 8), (1, 1), ())
     if pixels or name != "torch's"],  # torch's takes images only
)  # fmt: skip
@pytest.mark.parametrize("m", [32, 4096])
def test_a_layer_of_the_loop(name: str, pixels: tuple[int, ...], m: int) -> None:
    torch.manual_seed(0)
    x, g = noise(m, *pixels), noise(m, *pixels)
    g = g + x / 2  # so that no sum is near 0
    layer, exact = LAYERS[name](), LAYERS[name]().double()
    assert_exact(results(layer, x, g), results(exact, x.double(), g.double()))


def test_layers_of_timms_models_sum_exactly() -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_classes": 4, "in_chans": 3, "image_size": 32, "seed": 0}
    for model in ("resnet18", "mobilenetv3_small_050"):  # the latter's norms hold their activation
        layer: Any = build_model(model, "batch", batch_size=4096, **settings).get_submodule("bn1")
        layer.momentum = 1.0
        x = torch.randn(2048, layer.num_features, 8, 8) + 1
        layer(x.contiguous(memory_format=torch.channels_last))
        var, mean = torch.var_mean(x.double(), (0, 2, 3))
        got = {"var": layer.running_var, "mean": layer.running_mean}
        assert_exact(got, {"var": var, "mean": mean})


@pytest.mark.parametrize("pixels", [(8, 8), (1, 1)])
def test_recomputed_statistics(pixels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, layer = noise(4096, *pixels), BatchNorm(CHANNELS)
    recompute_population_statistics(layer, x)
    var, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    got = {"var": layer.get_buffer("running_var"), "mean": layer.get_buffer("running_mean")}
    assert_exact(got, {"var": var, "mean": mean})


CASES = [
    ("loop", None, 4096),
    ("native", None, 4096),  # a batch in eight parts
    ("native", None, 4095),  # in one
    ("native", 2048, 4096),
    ("native", 8, 4096),  # the running statistics are the mean of 512 sub-batches
    ("torch", None, 4095),
    ("torch", 2048, 4096),
]


@pytest.mark.parametrize(("engine", "bn_batch_size", "m"), CASES)
def test_an_engines_first_update(engine: str, bn_batch_size: int | None, m: int) -> None:
    if engine == "native" and compiler() is None:
        pytest.skip("needs a C++ compiler")
    expected = first_update("loop", bn_batch_size, m, torch.float64)
    got = first_update(engine, bn_batch_size, m, torch.float32)
    layers = [name.removesuffix("running_var") for name in expected if name.endswith("_var")]
    assert len(layers) == 7
    for layer in layers:
        names = {"var": f"{layer}running_var", "mean": f"{layer}running_mean"}
        assert_exact(*({key: it[own] for key, own in names.items()} for it in (got, expected)))
    # The update was by a gradient of hundreds, so that the weights tell it. That of the last norm
    # goes through no ReLU whose input is so near 0 that rounding decides it.
    for name, start in (("weight", 1), ("bias", 0)):
        own = f"{layers[-1]}{name}"
        assert_exact({name: got[own] - start}, {name: expected[own] - start})


@cache
def first_update(
    engine: str, bn_batch_size: int | None, m: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """ResNet-8 after one update."""
    norm = "batch" if bn_batch_size is None else "ghost"
    study = StudyConfig(model="resnet8", norm=norm, bn_batch_size=bn_batch_size, epochs=1,
                        weight_decay=0.0)  # fmt: skip
    images = make_dataset(n=m, test=8, size=4)
    data = load_resident(images, augment=False, device=CPU, dtype=dtype)
    run = Run(study, "f", m, 1.0, 0)
    if engine == "loop":
        return loop.train(run, data, dtype=dtype).weights
    return stacked.train_lanes([run], data, by_torch=engine == "torch")[0].weights
