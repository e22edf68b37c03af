"""Winograd's convolution and its gradients over lanes against torch's own, place by place."""

from __future__ import annotations

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from smallbatch.engines.lanes.native import compile as native
from smallbatch.engines.lanes.native.algorithms import Algorithm
from smallbatch.engines.lanes.native.compiler import FLAGS, identity
from smallbatch.engines.lanes.native.memory import aligned, by_lane, by_value
from smallbatch.engines.lanes.native.network import NativeNetwork
from smallbatch.engines.lanes.native.structures import Shape
from smallbatch.models.resnet import ResNet

VECTORS = [
    (4, 4),
    (4, 1),
    (8, 8),
    (8, 4),
    (8, 2),
    (8, 1),
    (16, 16),
    (16, 8),
    (16, 4),
    (16, 2),
    (16, 1),
]
"""Places of a vector, and its lanes."""
ALGORITHMS = ["Tiles2", "Tiles4", "Strided"]
# Of the largest number of a result. The coefficients of 4×4 tiles amplify rounding about eightfold.
TOLERANCE = {"double": 1e-12, "float": 2e-5}
AMPLIFIED = {"Tiles2": 1, "Tiles4": 8, "Strided": 1}
SHAPES = [  # inputs, outputs, height and width of the outputs, examples
    (16, 16, 8, 8, 2),  # 32 tiles
    (16, 16, 8, 8, 33),  # 528 tiles
    (16, 32, 4, 4, 5),  # 20 tiles of 2, 5 of 4: no multiples of 3
    (32, 64, 4, 4, 7),
    (64, 64, 4, 4, 4),
    (4, 12, 8, 8, 3),
    (12, 4, 4, 4, 33),
    (3, 16, 8, 8, 3),  # three channels of a first layer
    (1, 4, 8, 8, 2),
    (16, 16, 32, 32, 2),
    (128, 8, 4, 4, 4),
    (640, 4, 4, 4, 4),  # a block of tiles would exceed the caches
    (16, 16, 4, 12, 3),
]

_SOURCE = """
#include "%s"
#define CALLS(F, INPUT) \\
void convolve_##F(const Shape *in, const Shape *out, const vec *x, const REAL *w, vec *y, \\
                  const REAL *bias, int lanes) { \\
    winograd<F>(*in, *out, x, w, false, y, bias, lanes); \\
} \\
void input_gradient_##F(const Shape *in, const Shape *out, const vec *dz, const REAL *w, vec *dx, \\
                        int lanes) { \\
    winograd<INPUT>(*out, *in, dz, w, true, dx, nullptr, lanes); \\
} \\
void weights_gradient_##F(const Shape *in, const Shape *out, const vec *x, const vec *dz, \\
                          REAL *dw, int lanes) { \\
    winograd_weight_gradient<F>(*in, *out, x, dz, dw, lanes); \\
}
extern "C" {
CALLS(Tiles2, Tiles2)
CALLS(Tiles4, Tiles4)
CALLS(Strided, StridedInput)
}
"""


class Calls:
    """One algorithm."""

    def __init__(self, library: ctypes.CDLL, algorithm: str) -> None:
        names = ("convolve", "input_gradient", "weights_gradient")
        functions = (library[f"{name}_{algorithm}"] for name in names)
        self.convolve, self.input_gradient, self.weights_gradient = functions


@cache
def kernels(real: str, places: int, folder: Path) -> ctypes.CDLL:
    source, path = folder / f"{real}.cpp", folder / f"{real}-{places}.so"
    source.write_text(_SOURCE % native.SOURCE)
    command = [identity()[0], *FLAGS, f"-DREAL={real}", f"-DV={places}"]
    subprocess.run([*command, str(source), "-o", str(path)], check=True, capture_output=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("winograd")


class Buffer:
    """Values (place, example, channel, row, column) as the kernels store them, within zeros."""

    def __init__(self, values: NDArray[Any]) -> None:
        places, n, c, height, width = values.shape
        row = width + 2
        example = (height + 2) * row
        self.shape = Shape(c, n, height, width, n * example + 3, example, row, row + 1)
        self._lines = aligned(c * self.shape.channel, places, values.dtype.type)
        self.values = self._lines.reshape(c, -1, places)[:, : n * example].reshape(
            c, n, height + 2, row, places
        )
        self.values[:, :, 1:-1, 1:-1] = values.transpose(2, 1, 3, 4, 0)

    @property
    def address(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._lines.ctypes.data)

    def read(self) -> NDArray[Any]:
        """The values back; the border must still hold zeros."""
        border = self.values.copy()
        border[:, :, 1:-1, 1:-1] = 0
        assert not border.any()
        return self.values[:, :, 1:-1, 1:-1].transpose(4, 1, 0, 2, 3)


@pytest.mark.parametrize("real", ["double", "float"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("places", "lanes"), VECTORS)
def test_convolution_and_gradients(
    folder: Path, places: int, lanes: int, algorithm: str, real: str
) -> None:
    for inputs, outputs, height, width, n in SHAPES:
        if inputs * outputs * lanes % places == 0:
            check(folder, (inputs, outputs, height, width, n), (places, lanes), algorithm, real)


def check(
    folder: Path,
    sizes: tuple[int, int, int, int, int],
    vector: tuple[int, int],
    algorithm: str,
    real: str,
) -> None:
    inputs, outputs, height, width, n = sizes
    places, lanes = vector
    stride = 2 if algorithm == "Strided" else 1
    bias = lanes == places or height == 8
    library = Calls(kernels(real, places, folder), algorithm)
    rng = np.random.default_rng(7)
    dtype = np.float64 if real == "double" else np.float32

    def drawn(*shape: int) -> NDArray[Any]:
        return rng.standard_normal(shape).astype(dtype)

    x, dz = (
        drawn(places, n, inputs, stride * height, stride * width),
        drawn(places, n, outputs, height, width),
    )
    w, b = drawn(lanes, outputs, inputs, 3, 3), drawn(lanes, outputs)
    source, target = Buffer(x), Buffer(np.full_like(dz, 9))
    dx, gradient = Buffer(np.full_like(x, 9)), Buffer(dz)
    weights, biases, dw = (
        by_value(rows.reshape(lanes, -1), lanes, places) for rows in (w, b, np.full_like(w, 9))
    )
    shapes = ctypes.byref(source.shape), ctypes.byref(target.shape)
    library.convolve(
        *shapes, source.address, pointer(weights), target.address,
        pointer(biases) if bias else None, lanes,
    )  # fmt: skip
    if inputs % 4 == 0:
        library.input_gradient(*shapes, gradient.address, pointer(weights), dx.address, lanes)
    library.weights_gradient(*shapes, source.address, gradient.address, pointer(dw), lanes)
    tolerance = TOLERANCE[real] * AMPLIFIED[algorithm]
    expected_dw = np.zeros(w.shape)
    for place in range(places):
        lane = place % lanes
        xs, ws = (
            torch.from_numpy(v.astype(np.float64)).requires_grad_() for v in (x[place], w[lane])
        )
        bs = torch.from_numpy(b[lane].astype(np.float64)) if bias else None
        expected = nn.functional.conv2d(xs, ws, bs, stride=stride, padding=1)
        expected.backward(torch.from_numpy(dz[place].astype(np.float64)))
        assert xs.grad is not None
        assert ws.grad is not None
        expected_dw[lane] += ws.grad.numpy()
        near(target.read()[place], expected.detach().numpy(), tolerance)
        if inputs % 4 == 0:
            near(dx.read()[place], xs.grad.numpy(), tolerance)
    near(by_lane(dw, lanes, w[0].size).reshape(w.shape), expected_dw, tolerance)


def pointer(values: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.ctypes.data)


def near(mine: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    assert float(np.abs(mine - expected).max()) < tolerance * float(np.abs(expected).max())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("places", "lanes"), [it for it in VECTORS if it[1] > 1])
def test_a_neighbour_changes_nothing(folder: Path, places: int, lanes: int, algorithm: str) -> None:
    """Bit for bit, even beside lanes that are not finite."""
    library = Calls(kernels("float", places, folder), algorithm)
    rng = np.random.default_rng(3)
    side = 16 if algorithm == "Strided" else 8
    x = rng.standard_normal((places, 2, 16, side, side)).astype(np.float32)
    y = rng.standard_normal((places, 2, 16, 8, 8)).astype(np.float32)
    w = rng.standard_normal((lanes, 16, 16, 3, 3)).astype(np.float32)
    own = np.arange(places) % lanes == 0
    results: list[list[NDArray[Any]]] = []
    for other in (1.0, np.nan):
        x[~own], y[~own], w[1:] = other, other, other
        source, target = Buffer(x), Buffer(y)
        weights, dw = (by_value(w.reshape(lanes, -1), lanes, places) for _ in range(2))
        shapes = ctypes.byref(source.shape), ctypes.byref(target.shape)
        library.weights_gradient(*shapes, source.address, target.address, pointer(dw), lanes)
        library.input_gradient(*shapes, target.address, pointer(weights), source.address, lanes)
        before = source.values[..., own].copy()
        library.convolve(*shapes, source.address, pointer(weights), target.address, None, lanes)
        results.append([target.values[..., own], dw[::lanes], before])
    for one, other in zip(*results, strict=True):
        assert np.isfinite(one).all()
        assert np.array_equal(one, other)


def _layers(side: int, m: int, channels: int = 3, norm: str = "batch") -> list[int]:
    model = ResNet(1, 10, channels, norm)
    network = NativeNetwork(model, m, (channels, side, side), np.float32, width=8)
    structure = network.structure
    return [structure.layers[i].algorithm for i in range(structure.count_layers)]


def test_layers_use_it_in_the_largest_tiles_that_are_enough() -> None:
    tables, two, four, strided = Algorithm
    # Layers: first conv, three blocks of two convs (two begin with stride 2), FC.
    assert _layers(32, 2) == [four, four, four, strided, four, strided, two, tables]
    assert _layers(8, 4) == [two, two, two, strided, two, tables, tables, tables]
    assert not any(_layers(7, 16)[:4])  # odd sides
    assert _layers(32, 2, norm="none") == [two, two, two, strided, two, strided, two, tables]
