"""ResNet-8 in plain JAX: of one lane, of lanes by `vmap`, of lanes by batched matrix products.

Weights are (S, L, …) for S seeds of L lanes. Imported where JAX is already set up.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from smallbatch.speed.bench.peers.task import WIDTHS, Array

EPS = 1e-5
Weights = dict[str, Any]
Found = tuple[Weights, Weights, Any, Any]  # gradients, running statistics, losses, right answers


def features(
    x: Any,
    conv: Callable[[Any, str, int], Any],
    norm: Callable[[Any, str], Any],
    shortcut: Callable[[Any, int], Any],
) -> Any:
    """Images → the last activations; the layers are the caller's, by torch's names."""
    x = jax.nn.relu(norm(conv(x, "conv1", 1), "norm1"))
    for block, width in enumerate(WIDTHS):
        name, stride = f"blocks.{block}", 1 if block == 0 else 2
        y = jax.nn.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.norm1"))
        y = norm(conv(y, f"{name}.conv2", 1), f"{name}.norm2")
        x = jax.nn.relu(y + (x if stride == 1 else shortcut(x, width // 2)))
    return x


def losses(logits: Any, labels: Any) -> Any:
    """(…, m, classes) and (…, m) → the sum of cross-entropies (…)."""
    chosen = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -(jax.nn.log_softmax(logits) * chosen).sum((-2, -1))


def right(logits: Any, labels: Any) -> Any:
    """(…, m, classes) and (…, m) → the number of right answers (…)."""
    return (logits.argmax(-1) == labels).sum(-1, dtype=jnp.int32)


def normalise(
    x: Any, weights: Weights, moved: Weights, name: str, axes: tuple[int, ...], momentum: float
) -> Any:
    """Batch norm; its scale and shift must fit `x`. The running statistics' targets go to `moved`.

    Mean and variance come from one pass over `x`, as flax computes them.
    """
    if f"{name}.running_mean" not in weights:
        return x
    mean, square = x.mean(axes, keepdims=True), (x * x).mean(axes, keepdims=True)
    var = jnp.maximum(square - mean * mean, 0)
    values = np.prod([x.shape[axis] for axis in axes])
    unbiased = var * (values / (values - 1))
    for key, new in (("running_mean", mean), ("running_var", unbiased)):
        old = weights[f"{name}.{key}"]
        moved[f"{name}.{key}"] = old + momentum * (lax.stop_gradient(new).reshape(old.shape) - old)
    keep = tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))
    scale = lax.rsqrt(var + EPS) * weights[f"{name}.weight"].reshape(keep)
    return (x - mean) * scale + weights[f"{name}.bias"].reshape(keep)


class Vmap:
    """A plain model of one lane, (m, C, H, W), vmapped over seeds and their lanes.

    Args:
        momentum: Weight of the newest batch in the running statistics.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum

    def images(self, images: Array) -> Array:
        """As the model takes them."""
        return images

    def stored(self, name: str, value: Array) -> Array:
        """A weight (K, …) of torch's as it is kept here."""
        del name
        return value

    plain = stored

    def gradients(self, parameters: Weights, running: Weights, x: Any, y: Any) -> Found:
        """Of all lanes, from images (S, m, C, H, W) and labels (S, m)."""
        lane = jax.value_and_grad(self._loss, has_aux=True)
        lanes = jax.vmap(jax.vmap(lane, (0, 0, None, None)))
        (loss, (moved, hits)), gradients = lanes(parameters, running, x, y)
        return gradients, moved, loss, hits

    def _loss(self, parameters: Weights, running: Weights, x: Any, y: Any) -> Any:
        weights, moved = parameters | running, Weights()
        norm = partial(self._norm, weights, moved)
        z = features(x, partial(self._conv, weights), norm, self._shortcut)
        logits = z.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
        return losses(logits, y), (moved, right(logits, y))

    def _conv(self, weights: Weights, x: Any, name: str, stride: int) -> Any:
        y = lax.conv_general_dilated(
            x, weights[f"{name}.weight"], (stride, stride), ((1, 1), (1, 1)),
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
        )  # fmt: skip
        bias = weights.get(f"{name}.bias")
        return y if bias is None else y + bias[:, None, None]

    def _norm(self, weights: Weights, moved: Weights, x: Any, name: str) -> Any:
        return normalise(x, weights, moved, name, (0, 2, 3), self.momentum)

    def _shortcut(self, x: Any, new: int) -> Any:
        return jnp.pad(x[:, :, ::2, ::2], ((0, 0), (0, new), (0, 0), (0, 0)))


class Single(Vmap):
    """The plain model of one lane without `vmap`, as for a single run."""

    def gradients(self, parameters: Weights, running: Weights, x: Any, y: Any) -> Found:
        """Of the only lane of the only seed, from images (1, m, C, H, W) and labels (1, m)."""
        lane = jax.value_and_grad(self._loss, has_aux=True)
        own = ({name: value[0, 0] for name, value in it.items()} for it in (parameters, running))
        (loss, (moved, hits)), gradients = lane(*own, x[0], y[0])
        return jax.tree.map(lambda it: it[None, None], (gradients, moved, loss, hits))


class Einsum:
    """All lanes at once, (S, L, m, H, W, C); a convolution is patches times weights (…, 9·C, O).

    Args:
        momentum: Weight of the newest batch in the running statistics.
        preset: Name of a `DotAlgorithmPreset` for every product; float32 without.
    """

    def __init__(self, momentum: float, preset: str | None = None) -> None:
        self.momentum = momentum
        self.precision: Any = (
            lax.Precision.HIGHEST if preset is None else lax.DotAlgorithmPreset[preset]
        )

    def images(self, images: Array) -> Array:
        """As the model takes them."""
        return np.ascontiguousarray(np.moveaxis(images, 1, 3))

    def stored(self, name: str, value: Array) -> Array:
        """A weight (K, …) of torch's as it is kept here."""
        if value.ndim != 5:
            return value
        lanes, out = value.shape[:2]
        del name
        return value.transpose(0, 3, 4, 2, 1).reshape(lanes, -1, out)

    def plain(self, name: str, value: Array) -> Array:
        """The opposite of `stored`."""
        if "conv" not in name or value.ndim != 3:
            return value
        lanes, _, out = value.shape
        return value.reshape(lanes, 3, 3, -1, out).transpose(0, 4, 3, 1, 2)

    def gradients(self, parameters: Weights, running: Weights, x: Any, y: Any) -> Found:
        """Of all lanes, from images (S, m, H, W, C) and labels (S, m)."""
        total = jax.value_and_grad(self._loss, has_aux=True)
        (_, (moved, loss, hits)), gradients = total(parameters, running, x, y[:, None])
        return gradients, moved, loss, hits

    def _loss(self, parameters: Weights, running: Weights, x: Any, y: Any) -> Any:
        weights, moved = parameters | running, Weights()
        norm = partial(self._norm, weights, moved)
        z = features(x, partial(self._conv, weights), norm, self._shortcut).mean((3, 4))
        logits = jnp.einsum("slmc,sloc->slmo", z, weights["fc.weight"], precision=self.precision)
        logits += weights["fc.bias"][:, :, None]
        loss = losses(logits, y)
        return loss.sum(), (moved, loss, right(logits, y))

    def _conv(self, weights: Weights, x: Any, name: str, stride: int) -> Any:
        weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        x = _patches(x, stride)
        if x.ndim == 5:  # the images, which a seed's lanes share: one wide product
            seeds, lanes, taps, out = weight.shape
            wide = weight.transpose(0, 2, 1, 3).reshape(seeds, taps, lanes * out)
            y = self._product(x.reshape(seeds, -1, taps), wide)
            y = jnp.moveaxis(y.reshape(*x.shape[:-1], lanes, out), 4, 1)
        else:
            flat = x.reshape(*x.shape[:2], -1, x.shape[-1])
            y = self._product(flat, weight).reshape(*x.shape[:-1], -1)
        return y if bias is None else y + bias[:, :, None, None, None]

    def _product(self, x: Any, weight: Any) -> Any:
        """Matrix products, batched over all leading dimensions."""
        batch = tuple(range(x.ndim - 2))
        return lax.dot_general(
            x, weight, (((x.ndim - 1,), (x.ndim - 2,)), (batch, batch)),
            precision=self.precision, preferred_element_type=jnp.float32,
        )  # fmt: skip

    def _norm(self, weights: Weights, moved: Weights, x: Any, name: str) -> Any:
        return normalise(x, weights, moved, name, (2, 3, 4), self.momentum)

    def _shortcut(self, x: Any, new: int) -> Any:
        return jnp.pad(x[:, :, :, ::2, ::2], (*[(0, 0)] * 5, (0, new)))


def _patches(x: Any, stride: int) -> Any:
    """(…, H, W, C) → (…, ⌈H / stride⌉, ⌈W / stride⌉, 9·C), zeros outside of the images."""
    height, width = (-(-side // stride) for side in x.shape[-3:-1])
    x = jnp.pad(x, (*[(0, 0)] * (x.ndim - 3), (1, 1), (1, 1), (0, 0)))
    taps = [
        x[..., i : i + stride * (height - 1) + 1 : stride,
          j : j + stride * (width - 1) + 1 : stride, :]
        for i in range(3) for j in range(3)
    ]  # fmt: skip
    return jnp.concatenate(taps, -1)
