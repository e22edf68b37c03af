"""How a batch is divided into parts, and which algorithm computes each convolution."""

from __future__ import annotations

from enum import IntEnum

from torch import nn

from smallbatch.engines.lanes.native import width
from smallbatch.engines.lanes.native.steps import Step
from smallbatch.engines.lanes.native.structures import Shape
from smallbatch.models.flops import forward_flops
from smallbatch.models.norms import GhostBatchNorm


class Algorithm(IntEnum):
    """How a convolution and its gradients are computed; as in `structures.h`."""

    TABLES = 0  # sums of products over tables of offsets
    TILES_2 = 1  # Winograd's F(2×2, 3×3)
    TILES_4 = 2  # F(4×4, 3×3)
    STRIDED = 3  # stride 2: by a pixel's parity, F(2×2, 2×2), F(2, 2) or products


# Side of an algorithm's tiles, and the fewest tiles for which transforming the weights pays.
_TILES = {Algorithm.TILES_2: (2, 16), Algorithm.TILES_4: (4, 32), Algorithm.STRIDED: (2, 16)}
_LARGE_SIDE = 16  # smallest side of an image, in pixels, for which tiles of 4 are considered
_OUTPUTS = 4  # channels that the kernels of these algorithms compute together
_WEIGHT_USES = 6  # products of a place with a weight that take as long as to load the weight
_ALONE = 0.9  # cost of a vector of one lane, whose weights are single numbers; 1: of others
_LANES_OF_A_WORKER = 10  # as for 13 base learning rates × 2 seeds on 2 cores, or a few less


def parts_of_a_batch(
    model: nn.Module, batch_size: int, image: tuple[int, int, int], places: int | None = None
) -> int:
    """The number of parts of a run's batch; each part has a place of a vector of its own.

    Many parts leave fewer places empty, and fewer runs' activations have to fit in the caches; but
    each part loads every weight for itself, and uses it less often. The result is the number that
    costs least for a worker of :data:`_LANES_OF_A_WORKER` lanes. It does not depend on the real
    number of lanes, as the numbers of a lane must not depend on the other lanes.

    Args:
        model: A plain model.
        batch_size: m.
        image: Channels, height and width in pixels.
        places: Of a vector; None: as this machine's kernels have them.

    Returns:
        A power of two, at most the number of places.
    """
    places = places or width.vector_width()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    uses = batch_size * forward_flops(model, image) / 2 / parameters
    bn_batch_sizes = [m.bn_batch_size for m in model.modules() if isinstance(m, GhostBatchNorm)]

    def suits(parts: int) -> bool:
        part, rest = divmod(batch_size, parts)
        whole = all(b >= batch_size or part % b == 0 for b in bn_batch_sizes)
        return parts == 1 or (rest == 0 and whole)

    def cost(parts: int) -> float:
        empty = (places / parts - 1) / 2  # runs missing in the last group, on average
        alone = _ALONE if parts == places else 1
        return alone * (1 + _WEIGHT_USES * parts / uses) * (1 + empty / _LANES_OF_A_WORKER)

    powers = (2**i for i in range(places.bit_length()))
    return min(filter(suits, powers), key=cost)


def lanes_of_a_vector(model: nn.Module, batch_size: int, image: tuple[int, int, int]) -> int:
    """The number of lanes that a vector holds: a power of two."""
    return width.vector_width() // parts_of_a_batch(model, batch_size, image)


def algorithm_of(step: Step, inputs: int, source: Shape, out: Shape, parts: int = 1) -> Algorithm:
    """The algorithm for a layer's product.

    Tiles of 4 are used only if a norm is between convolution and ReLU. Where a convolution reads
    only zeros, as in the border of a crop, tiles of 2 give exactly 0, but tiles of 4 give a
    rounding error, and half of these errors would pass the ReLU. The rounding of tiles of 4 is
    eight times that of tiles of 2, so they are not used for small images, which are quick anyway.

    Args:
        step: The layer.
        inputs: The number of input channels whose gradient is needed.
        source: The shape of the input.
        out: The shape of the output, with the examples of one place.
        parts: The places of a run; weights are transformed as many at a time.
    """
    product = step.product
    if not isinstance(product, nn.Conv2d) or product.kernel_size[0] != 3:
        return Algorithm.TABLES
    whole = source.channels * out.channels % parts == 0
    if out.channels % _OUTPUTS or inputs % _OUTPUTS or not whole:
        return Algorithm.TABLES
    stride = product.stride[0]
    if stride == 1:
        large = step.norm is not None and out.height >= _LARGE_SIDE
        choice = [Algorithm.TILES_4, Algorithm.TILES_2] if large else [Algorithm.TILES_2]
    else:
        whole = (source.height, source.width) == (2 * out.height, 2 * out.width)
        choice = [Algorithm.STRIDED] if stride == 2 and whole else []

    def suits(algorithm: Algorithm) -> bool:
        side, least = _TILES[algorithm]
        tiles = out.examples * (out.height // side) * (out.width // side)
        return out.height % side == 0 and out.width % side == 0 and tiles >= least

    return next(filter(suits, choice), Algorithm.TABLES)
