"""Builds the kernels' tables and buffers from the structure of a plain model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from smallbatch.engines.lanes.native.algorithms import Algorithm, algorithm_of
from smallbatch.engines.lanes.native.memory import PAGE, SPREAD, aligned, lay_out
from smallbatch.engines.lanes.native.steps import MAX_POOL, MEAN_POOL, NO_POOL, Step, steps_of
from smallbatch.engines.lanes.native.structures import Layer, Network, Product, Shape
from smallbatch.models.norms import GhostBatchNorm

_BLOCK = 12  # a multiple of the positions that the kernels compute together, P in vectors.h
_TILE_BYTES = 2**18  # of a product's input, which then stays in a core's second-level cache


_NO_NORM, _RUNNING, _OWN = range(3)


@dataclass
class NativeNetwork:
    """Tables and buffers of a model for one batch size; the groups of lanes use them in turn.

    Attributes:
        model: A plain model.
        batch_size: Examples of a place of a vector, that is, of each part of a batch.
        image: Channels, height and width.
        dtype: The dtype of the arithmetic.
        width: The places of a vector.
        parts: The parts of a run's batch, each in a place of its own: a divisor of the width.
        training: Whether gradients are needed.
        structure: The `Network` that the kernels read.
        places: Offset and shape of each parameter in a lane's row, in the model's order.
        statistics: The same for the running means and variances.
        parameters: The number of parameters of one lane.
        bytes: The size of the buffers.
    """

    model: nn.Module
    batch_size: int
    image: tuple[int, int, int]
    dtype: type[np.floating[Any]]
    width: int
    parts: int = 1
    training: bool = True
    structure: Network = field(init=False)
    places: dict[str, tuple[int, tuple[int, ...]]] = field(init=False)
    statistics: dict[str, tuple[int, tuple[int, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self._kept: list[Any] = []  # memory that the structures point to
        self._scratch: dict[tuple[int, ...], int] = {}
        self.bytes = 0
        self.places, self.parameters = lay_out(dict(self.model.named_parameters()))
        buffers = {
            name: value
            for name, value in self.model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        }
        self.statistics, self.statistic_count = lay_out(buffers)
        self._names = {id(module): name for name, module in self.model.named_modules()}
        steps = steps_of(self.model)
        channels, height, width = self.image
        border = _border(steps[0].product)
        shape = self._shape(channels, height, width, border)
        self.input = self._buffer(shape)
        layers = (Layer * len(steps))()
        source = _Source(shape, self.input, 0)
        sources: list[_Source] = []
        for i, step in enumerate(steps):
            later = steps[i + 1].product if i + 1 < len(steps) else None
            source = self._layer(layers[i], step, source, later, sources)
            sources.append(source)
        self.labels = np.zeros((self.batch_size, self.width), np.int64)
        self.gradient = aligned(-(-self.parameters // self.parts), self.width, self.dtype)
        self._kept += [layers, steps]
        self.structure = Network(
            layers=layers,
            count_layers=len(steps),
            batch_size=self.batch_size,
            classes=steps[-1].product.weight.shape[0],
            parts=self.parts,
            input_shape=shape,
            input=self.input,
            gradient=self.gradient.ctypes.data,
            parameters=self.parameters,
            labels=self.labels.ctypes.data,
        )

    def _layer(
        self,
        layer: Layer,
        step: Step,
        source: _Source,
        later: nn.Module | None,
        sources: list[_Source],
    ) -> _Source:
        product = step.product
        convolution = isinstance(product, nn.Conv2d)
        height, width = source.shape.height, source.shape.width
        stride = product.stride[0] if convolution else 1
        if convolution:
            height, width = -(-height // stride), -(-width // stride)
        else:
            height = width = 1
        pooled = step.pool != NO_POOL
        border = max(_border(product), 0 if pooled else _border(later))
        out = self._shape(product.weight.shape[0], height, width, border)
        layer.in_, layer.out, layer.x, layer.dx = source.shape, out, source.y, source.dy
        name = self._names[id(product)]
        layer.weight = self.places[f"{name}.weight"][0]
        layer.bias = self.places[f"{name}.bias"][0] if product.bias is not None else -1
        inputs = source.shape.channels if source.dy else 0
        layer.algorithm = algorithm_of(step, inputs, source.shape, out, self.parts)
        if layer.algorithm == Algorithm.TABLES:
            self._products(layer, product, source, out, stride)
        self._norm(layer, step.norm, out)
        layer.y = self._buffer(out)
        # Three buffers in turn, as three are in use at a time: the layer's own dy; that of the
        # layer before, which it writes; and that of the layer after, which a shortcut still reads.
        layer.dy = self._shared(out, len(sources) % 3) if self.training else 0
        layer.z = self._buffer(out) if step.norm else layer.y
        layer.dz = layer.dy
        if self.training and step.norm and step.skip is not None:
            layer.dz = self._shared(out, 3)  # as dy is still needed, for the shortcut
        layer.relu = step.relu
        if step.skip is not None:
            skip = sources[step.skip]
            layer.stride, layer.skip = step.stride, skip.shape
            layer.skip_x, layer.skip_dx = skip.y, skip.dy
        if not pooled:
            return _Source(out, layer.y, layer.dy)
        return self._pool(layer, step.pool, out, later)

    def _pool(self, layer: Layer, pool: int, out: Shape, later: nn.Module | None) -> _Source:
        height, width = out.height, out.width
        layer.pool, layer.pool_top, layer.pool_left = pool, height % 2, width % 2
        halved = (-(-height // 2), -(-width // 2))
        height, width = (1, 1) if pool == MEAN_POOL else halved
        layer.pooled = self._shape(out.channels, height, width, _border(later))
        layer.pooled_y = self._buffer(layer.pooled)
        layer.pooled_dy = self._buffer(layer.pooled) if self.training else 0
        layer.winner = self._buffer(layer.pooled) if pool == MAX_POOL else 0
        return _Source(layer.pooled, layer.pooled_y, layer.pooled_dy)

    def _products(
        self,
        layer: Layer,
        product: nn.Conv2d | nn.Linear,
        source: _Source,
        out: Shape,
        stride: int,
    ) -> None:
        outputs = out.channels
        x = source.shape
        if isinstance(product, nn.Conv2d):
            kernel, pad = product.kernel_size[0], product.kernel_size[0] // 2
            c, dy, dx = np.indices((x.channels, kernel, kernel)).reshape(3, -1)
            n, row, column = np.indices((self.batch_size, out.height, out.width)).reshape(3, -1)
            x_base = x.at(0, n, row * stride - pad, column * stride - pad)
        else:
            c, dy, dx = np.indices((x.channels, x.height, x.width)).reshape(3, -1)
            n = np.arange(self.batch_size)
            row = column = np.zeros_like(n)
            x_base = x.at(0, n, 0, 0)
        x_offset = x.at(c, 0, dy, dx) - x.origin
        rows = len(x_offset)
        y_base = out.at(0, n, row, column)
        layer.forward = self._product(
            outputs,
            rows,
            out.channel,
            x_offset,
            np.arange(rows),
            x_base,
            y_base,
            rows,
            x.channels * stride**2,
        )
        if not source.dy or not self.training:
            return
        if isinstance(product, nn.Conv2d):
            inputs = self._conv_inputs(product, x, out, stride)
        else:
            inputs = self._linear_inputs(x, out, rows)
        array = (Product * len(inputs))(*inputs)
        self._kept.append(array)
        layer.input, layer.inputs = array, len(inputs)

    def _conv_inputs(self, product: nn.Conv2d, x: Shape, out: Shape, stride: int) -> list[Product]:
        """Products for the gradient of a conv's input, one for pixels that meet the same taps."""
        kernel, pad = product.kernel_size[0], product.kernel_size[0] // 2
        taps = kernel * kernel
        inputs: list[Product] = []
        for top in range(stride):
            for left in range(stride):
                dy, dx = np.arange(top, kernel, stride), np.arange(left, kernel, stride)
                rows = np.arange(x.height)[(np.arange(x.height) + pad) % stride == top]
                columns = np.arange(x.width)[(np.arange(x.width) + pad) % stride == left]
                if not (len(rows) and len(columns)):
                    continue
                o, i, j = np.indices((out.channels, len(dy), len(dx))).reshape(3, -1)
                n, row, column = np.indices((self.batch_size, len(rows), len(columns))).reshape(
                    3, -1
                )
                row, column = rows[row], columns[column]
                x_base = out.at(0, n, (row + pad - top) // stride, (column + pad - left) // stride)
                x_offset = out.at(o, 0, -i, -j) - out.origin
                w_offset = o * (x.channels * taps) + dy[i] * kernel + dx[j]
                inputs.append(
                    self._product(
                        x.channels,
                        taps,
                        x.channel,
                        x_offset,
                        w_offset,
                        x_base,
                        x.at(0, n, row, column),
                        len(o),
                        out.channels,
                    )
                )
        return inputs

    def _linear_inputs(self, x: Shape, out: Shape, features: int) -> list[Product]:
        """Products for the gradient of an FC layer's input, one for each pixel."""
        n, o = np.arange(self.batch_size), np.arange(out.channels)
        return [
            self._product(
                x.channels,
                x.height * x.width,
                x.channel,
                out.at(o, 0, 0, 0) - out.origin,
                o * features + row * x.width + column,
                out.at(0, n, 0, 0),
                x.at(0, n, row, column),
                len(o),
                out.channels,
            )
            for row in range(x.height)
            for column in range(x.width)
        ]

    def _product(
        self,
        outputs: int,
        weight_stride: int,
        out_stride: int,
        x_offset: NDArray[Any],
        w_offset: NDArray[Any],
        x_base: NDArray[Any],
        y_base: NDArray[Any],
        rows: int,
        read: int,
    ) -> Product:
        positions = len(x_base)
        vector = self.width * np.dtype(self.dtype).itemsize
        repeats = (0, -positions % _BLOCK)
        bases = (np.pad(table, repeats, "edge") for table in (x_base, y_base))
        tables = [(table * vector).astype(np.int64) for table in (x_offset, *bases)]
        tables.append(w_offset.astype(np.int64))
        self._kept += tables
        self.bytes += sum(table.nbytes for table in tables)
        tile = _TILE_BYTES // (read * vector)
        return Product(
            rows, outputs, positions, max(1, tile // _BLOCK) * _BLOCK, weight_stride, out_stride,
            *[table.ctypes.data for table in tables],
        )  # fmt: skip

    def _norm(self, layer: Layer, module: nn.Module | None, out: Shape) -> None:
        layer.scale = layer.shift = layer.running_mean = layer.running_var = -1
        layer.channels_per_group, layer.examples_per_group = 1, self.batch_size
        layer.parts_per_group = 1
        if module is None:
            return
        name = self._names[id(module)]
        layer.scale = self.places[f"{name}.weight"][0]
        layer.shift = self.places[f"{name}.bias"][0]
        if isinstance(module, nn.GroupNorm):
            layer.norm, layer.eps = _OWN, module.eps
            layer.channels_per_group = out.channels // module.num_groups
            layer.examples_per_group = 1
        elif isinstance(module, nn.BatchNorm2d):
            layer.norm, layer.eps, layer.momentum = _RUNNING, module.eps, module.momentum or 0.0
            layer.running_mean = self.statistics[f"{name}.running_mean"][0]
            layer.running_var = self.statistics[f"{name}.running_var"][0]
            layer.parts_per_group = self.parts
            if isinstance(module, GhostBatchNorm):
                layer.examples_per_group = min(module.bn_batch_size, self.batch_size)
                if module.bn_batch_size < self.parts * self.batch_size:
                    layer.parts_per_group = 1
        else:
            raise TypeError(f"{type(module).__name__} has no native form")
        groups = -(-out.channels // layer.channels_per_group)
        groups *= -(-self.batch_size // layer.examples_per_group)
        layer.mean, layer.invstd, layer.variance = (self._zeros(groups) for _ in range(3))

    def _shape(self, channels: int, height: int, width: int, border: int) -> Shape:
        row = width + 2 * border
        example = (height + 2 * border) * row
        origin = border * row + border
        # If the stride were a power of two, all channels of a pixel would compete for the same
        # places of the first-level cache.
        channel = self.batch_size * example
        channel += (SPREAD - channel) % (PAGE // (self.width * np.dtype(self.dtype).itemsize))
        return Shape(channels, self.batch_size, height, width, channel, example, row, origin)

    def _buffer(self, shape: Shape) -> int:
        return self._zeros(shape.channels * shape.channel)

    def _shared(self, shape: Shape, number: int) -> int:
        """A buffer shared by layers of one shape, none of which needs it for long."""
        key = (shape.channels, shape.height, shape.channel, shape.row, shape.origin, number)
        if key not in self._scratch:
            self._scratch[key] = self._buffer(shape)
        return self._scratch[key]

    def _zeros(self, vectors: int) -> int:
        array = aligned(vectors, self.width, self.dtype)
        self._kept.append(array)
        self.bytes += array.nbytes
        return array.ctypes.data


@dataclass(frozen=True)
class _Source:
    """Where a layer's input is, and the gradient of it (0: not needed)."""

    shape: Shape
    y: int
    dy: int


def _border(module: nn.Module | None) -> int:
    return module.kernel_size[0] // 2 if isinstance(module, nn.Conv2d) else 0
