"""A small prepared data set without any source behind it."""

from __future__ import annotations

import numpy as np

from smallbatch.data.prepared import Dataset, Meta


def make_dataset(
    n: int = 23, test: int = 11, size: int | tuple[int, int] = 6, channels: int = 2
) -> Dataset:
    """``size``: height and width, one number for squares."""
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, size=(n + test, channels, height, width), dtype=np.uint8)
    labels = rng.integers(0, 3, size=n + test)
    pixels = images[:n] / 255
    meta = Meta(
        name="noise",
        source="digits",
        classes=("a", "b", "c"),
        channels=channels,
        height=height,
        width=width,
        mean=tuple(pixels.mean((0, 2, 3)).tolist()),
        std=tuple(pixels.std((0, 2, 3)).tolist()),
        counts={"train": n, "validation": 0, "test": test},
        fingerprint="f" * 64,
    )
    return Dataset(meta, images[:n], labels[:n], images[n:], labels[n:], None, None)
