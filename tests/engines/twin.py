"""A second implementation of the protocol in plain NumPy, written from the paper's equations.

It imports nothing of the product; `tests/protocol/test_stream_twin.py` holds it to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.protocol.twin_stream import epoch_of

Array = NDArray[np.float64]


def softmax_gradient(logits: Array, labels: NDArray[np.int64]) -> tuple[float, Array]:
    """Summed cross-entropy and its gradient with respect to the logits (m, K)."""
    shifted = logits - logits.max(1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(p[rows, labels]).sum()
    p[rows, labels] -= 1
    return float(loss), p


@dataclass
class Linear:
    """logits = W·x + b on flattened images."""

    weight: Array
    bias: Array

    def parameters(self) -> list[Array]:
        return [self.weight, self.bias]

    def gradients(self, x: Array, labels: NDArray[np.int64]) -> tuple[float, list[Array]]:
        flat = x.reshape(len(x), -1)
        loss, d = softmax_gradient(flat @ self.weight.T + self.bias, labels)
        return loss, [d.T @ flat, d.sum(0)]


@dataclass
class ConvNet:
    """3×3 conv (padding 1, bias) → ReLU → mean over pixels → FC, by loops over the taps."""

    kernel: Array  # (K, C, 3, 3)
    kernel_bias: Array
    weight: Array
    bias: Array

    def parameters(self) -> list[Array]:
        return [self.kernel, self.kernel_bias, self.weight, self.bias]

    def gradients(self, x: Array, labels: NDArray[np.int64]) -> tuple[float, list[Array]]:
        m, _, h, w = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        taps = [(i, j, padded[:, :, i : i + h, j : j + w]) for i in range(3) for j in range(3)]
        z = np.zeros((m, len(self.kernel), h, w)) + self.kernel_bias[None, :, None, None]
        for i, j, patch in taps:
            z += np.einsum("kc,mchw->mkhw", self.kernel[:, :, i, j], patch)
        a = np.maximum(z, 0)
        pooled = a.mean((2, 3))
        loss, d = softmax_gradient(pooled @ self.weight.T + self.bias, labels)
        d_z = (d @ self.weight)[:, :, None, None] / (h * w) * (z > 0)
        d_kernel = np.zeros_like(self.kernel)
        for i, j, patch in taps:
            d_kernel[:, :, i, j] = np.einsum("mkhw,mchw->kc", d_z, patch)
        return loss, [d_kernel, d_z.sum((0, 2, 3)), d.T @ pooled, d.sum(0)]


def stream(seed: int, n: int, epochs: int) -> list[tuple[int, int, int, bool]]:
    """Every position of the joined epochs: (image, top, left, flip)."""
    positions: list[tuple[int, int, int, bool]] = []
    for epoch in range(epochs):
        e = epoch_of(seed, epoch, n)
        positions += zip(e.index, e.top, e.left, e.flip, strict=True)
    return positions


def crop(image: Array, top: int, left: int, flip: bool) -> Array:
    """Pad by 4 zeros, cut a window of the image's size, mirror."""
    _, h, w = image.shape
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, top : top + h, left : left + w]
    return padded[:, :, ::-1] if flip else padded


def train(
    net: Any,
    images: Array,
    labels: NDArray[np.int64],
    *,
    seed: int,
    epochs: int,
    m: int,
    base_lr: float,
    weight_decay: float,
    warmup_updates: int,
    drops: tuple[int, int],
    augment: bool,
) -> list[float]:
    """Train ``net`` in place; returns the mean loss of every update.

    ``warmup_updates`` and ``drops`` are counted by hand in the tests, not derived from fractions.
    """
    positions = stream(seed, len(images), epochs)
    losses = []
    for update in range(len(positions) // m):
        picked = positions[update * m : (update + 1) * m]
        x = np.stack(
            [crop(images[i], t, left, f) if augment else images[i] for i, t, left, f in picked]
        )
        y = np.array([labels[i] for i, _, _, _ in picked])
        if update < warmup_updates:
            factor = 1 / 32 + (1 - 1 / 32) * update / warmup_updates
        else:
            factor = 0.1 ** ((update >= drops[0]) + (update >= drops[1]))
        loss, gradients = net.gradients(x, y)
        losses.append(loss / m)
        for theta, gradient in zip(net.parameters(), gradients, strict=True):
            # Mean gradient with decay, times η: the usual form, which eq. 5 says is the same.
            theta -= (m * base_lr * factor) * (gradient / m + weight_decay * theta)
    return losses
