"""From the structure of a plain model to tables and buffers for the kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from smallbatch.flops import forward_flops
from smallbatch.models.alexnet import AlexNet
from smallbatch.models.norms import GhostBatchNorm
from smallbatch.models.resnet import BasicBlock, ResNet
from smallbatch.training.stacked.native.compile import LANES
from smallbatch.training.stacked.native.structures import Layer, Network, Product, Shape

_BLOCK = 3  # positions that the kernels compute together, P in kernels.cpp
_TILE_BYTES = 2**18  # of a product's input that stay in a core's second-level cache

_WINOGRAD_TILES = {2: 16, 4: 32}  # by side, from which on the transforms of the weights pay
_WINOGRAD_SIDE = 16  # of the images, in pixels, from which on tiles of 4 are considered
_WINOGRAD_OUTPUTS = 4  # channels that its kernels compute together

_WEIGHT_USES = 40  # of a weight in products that cost as much as all else done with it in an update
_LANES_OF_A_WORKER = 10

_LINE = 32  # bytes of a vector of float
_SPREAD = 10  # vectors

_NO_NORM, _RUNNING, _OWN = range(3)
_NO_POOL, _MAX_POOL, _MEAN_POOL = range(3)


@dataclass
class _Step:
    """One layer of a network as its modules: product → norm → shortcut → relu → pool."""

    product: nn.Conv2d | nn.Linear
    norm: nn.Module | None = None
    skip: int | None = None  # number of the step whose output the shortcut adds
    stride: int = 1
    relu: bool = True
    pool: int = _NO_POOL


def _steps(model: nn.Module) -> list[_Step]:
    if isinstance(model, ResNet):
        steps = [_Step(model.conv1, model.norm1)]
        for block in model.blocks:
            if not isinstance(block, BasicBlock):
                raise TypeError(f"found {type(block).__name__} where a basic block is expected")
            steps.append(_Step(block.conv1, block.norm1))
            steps.append(_Step(block.conv2, block.norm2, skip=len(steps) - 2, stride=block.stride))
        steps[-1].pool = _MEAN_POOL
        return [*steps, _Step(_linear(model.fc), relu=False)]
    if isinstance(model, AlexNet):
        features: list[Any] = list(model.features.children())
        steps = [
            _Step(layer.conv, layer.norm, pool=_MAX_POOL if layer.pooled else _NO_POOL)
            for layer in features
        ]
        steps += [_Step(hidden.fc, hidden.norm) for hidden in (model.fc1, model.fc2)]
        return [*steps, _Step(_linear(model.fc), relu=False)]
    raise TypeError(f"{type(model).__name__} has no native form")


def _linear(module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise TypeError(f"found {type(module).__name__} where an FC layer is expected")
    return module


@dataclass
class NativeNetwork:
    """Tables and buffers of one model for batches of one size, used by one group after another.

    Attributes:
        model: a plain model.
        batch_size: examples of a place of a vector; of each part of a batch.
        image: channels, height and width.
        dtype: of the arithmetic.
        parts: of a run's batch, in as many neighbouring places: 1, 2, 4 or 8.
        training: whether gradients are wanted.
        structure: what the kernels read.
        places: offset and shape of each parameter in a lane's row, in the model's order.
        statistics: the same for the running means and variances.
        parameters: numbers of one lane.
        bytes: taken by the buffers.
    """

    model: nn.Module
    batch_size: int
    image: tuple[int, int, int]
    dtype: type[np.floating[Any]]
    parts: int = 1
    training: bool = True
    structure: Network = field(init=False)
    places: dict[str, tuple[int, tuple[int, ...]]] = field(init=False)
    statistics: dict[str, tuple[int, tuple[int, ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self._kept: list[Any] = []  # what the structures point to
        self._scratch: dict[tuple[int, ...], int] = {}
        self.bytes = 0
        self.places, self.parameters = _lay_out(dict(self.model.named_parameters()))
        buffers = {
            name: value
            for name, value in self.model.named_buffers()
            if name.endswith(("running_mean", "running_var"))
        }
        self.statistics, self.statistic_count = _lay_out(buffers)
        self._names = {id(module): name for name, module in self.model.named_modules()}
        steps = _steps(self.model)
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
        self.labels = np.zeros((self.batch_size, LANES), np.int64)
        self.gradient = aligned(self.parameters * LANES, self.dtype)
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
        step: _Step,
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
        pooled = step.pool != _NO_POOL
        border = max(_border(product), 0 if pooled else _border(later))
        out = self._shape(product.weight.shape[0], height, width, border)
        layer.in_, layer.out, layer.x, layer.dx = source.shape, out, source.y, source.dy
        name = self._names[id(product)]
        layer.weight = self.places[f"{name}.weight"][0]
        layer.bias = self.places[f"{name}.bias"][0] if product.bias is not None else -1
        layer.winograd = _winograd(step, source, out)
        if not layer.winograd:
            self._products(layer, product, source, out, stride)
        self._norm(layer, step.norm, out)
        layer.y = self._buffer(out)
        layer.dy = self._buffer(out) if self.training else 0
        layer.z = self._buffer(out) if step.norm else layer.y
        layer.dz = (self._shared(out) if step.norm else layer.dy) if self.training else 0
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
        height, width = (1, 1) if pool == _MEAN_POOL else halved
        layer.pooled = self._shape(out.channels, height, width, _border(later))
        layer.pooled_y = self._buffer(layer.pooled)
        layer.pooled_dy = self._buffer(layer.pooled) if self.training else 0
        layer.winner = self._buffer(layer.pooled) if pool == _MAX_POOL else 0
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
        """The gradient of a conv's input: pixels of one parity meet the same taps of the kernel."""
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
        """The gradient of an FC layer's input, pixel by pixel."""
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
        vector = LANES * np.dtype(self.dtype).itemsize
        repeats = (0, -positions % _BLOCK)
        bases = (np.pad(table, repeats, "edge") for table in (x_base, y_base))
        tables = [(table * vector).astype(np.int64) for table in (x_offset, w_offset, *bases)]
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
        # A stride of a power of two would put all channels of a pixel into the same places of the
        # first-level cache.
        channel = self.batch_size * example
        channel += (_SPREAD - channel) % (4096 // _LINE)
        return Shape(channels, self.batch_size, height, width, channel, example, row, origin)

    def _buffer(self, shape: Shape) -> int:
        return self._zeros(shape.channels * shape.channel)

    def _shared(self, shape: Shape) -> int:
        """A buffer that other layers of the same shape use too, each for a moment."""
        key = (shape.channels, shape.channel, shape.row, shape.origin)
        if key not in self._scratch:
            self._scratch[key] = self._buffer(shape)
        return self._scratch[key]

    def _zeros(self, vectors: int) -> int:
        array = aligned(vectors * LANES, self.dtype)
        self._kept.append(array)
        self.bytes += array.nbytes
        return array.ctypes.data


def parts_of_a_batch(model: nn.Module, batch_size: int, image: tuple[int, int, int]) -> int:
    """Parts into which a run's batch is dealt to neighbouring places of a vector.

    Many parts leave few places empty and keep the activations of fewer runs in the caches; but all
    work on weights, as their update, is done once for every part. The number that costs least for
    a worker of :data:`_LANES_OF_A_WORKER` lanes is taken whatever the lanes really are, because a
    lane's numbers must not depend on its company.

    Returns:
        1, 2, 4 or 8.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    uses = batch_size * forward_flops(model, image[0], image[1]) / 2 / parameters
    bn_batch_sizes = [m.bn_batch_size for m in model.modules() if isinstance(m, GhostBatchNorm)]

    def suits(parts: int) -> bool:
        part, rest = divmod(batch_size, parts)
        whole = all(b >= batch_size or part % b == 0 for b in bn_batch_sizes)
        return parts == 1 or (rest == 0 and whole)

    def cost(parts: int) -> float:
        empty = (LANES / parts - 1) / 2  # places of the last group, on average
        return (1 + _WEIGHT_USES * parts / uses) * (1 + empty / _LANES_OF_A_WORKER)

    return min(filter(suits, (1, 2, 4, 8)), key=cost)


@dataclass(frozen=True)
class _Source:
    """Where a layer's input is, and the input's gradient (0: nobody wants it)."""

    shape: Shape
    y: int
    dy: int


def _winograd(step: _Step, source: _Source, out: Shape) -> int:
    """Side of the tiles of outputs that Winograd's algorithm computes a layer in; 0: not at all.

    Where a convolution sees nothing but zeros, as in the border of a crop, tiles of 2 give zero and
    tiles of 4 a rounding error, of which a ReLU would let half pass: they need a norm in between.
    Their rounding is eight times that of tiles of 2; small images, quick anyway, do without them.
    """
    product = step.product
    if not isinstance(product, nn.Conv2d):
        return 0
    computed = [out.channels, source.shape.channels] if source.dy else [out.channels]
    whole = all(c % _WINOGRAD_OUTPUTS == 0 for c in computed)
    if product.kernel_size[0] != 3 or product.stride[0] != 1 or not whole:
        return 0

    def suits(side: int) -> bool:
        tiles = out.examples * (out.height // side) * (out.width // side)
        exact = out.height % side == 0 and out.width % side == 0
        return exact and tiles >= _WINOGRAD_TILES[side]

    large = step.norm is not None and out.height >= _WINOGRAD_SIDE
    return next((side for side in ((4, 2) if large else (2,)) if suits(side)), 0)


def _border(module: nn.Module | None) -> int:
    return module.kernel_size[0] // 2 if isinstance(module, nn.Conv2d) else 0


def _lay_out(values: dict[str, Any]) -> tuple[dict[str, tuple[int, tuple[int, ...]]], int]:
    places: dict[str, tuple[int, tuple[int, ...]]] = {}
    start = 0
    for name, value in values.items():
        places[name] = start, tuple(value.shape)
        start += value.numel()
    return places, start


def aligned(size: int, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Zeros at an address that vectors can be loaded from."""
    boundary = LANES * np.dtype(dtype).itemsize
    memory = np.zeros(size * np.dtype(dtype).itemsize + boundary, np.uint8)
    start = -memory.ctypes.data % boundary
    return memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)
