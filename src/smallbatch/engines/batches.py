"""Where an engine's examples come from, whether all images are in memory or they are streamed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


WHOLE = slice(None)
"""All of a batch."""


class Evaluated(Protocol):
    """A split on which models are evaluated."""

    def __len__(self) -> int:
        """The number of images."""
        ...

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images, normalised (≤ size, C, H, W), and labels, int64 (≤ size,), in order."""
        ...


class BatchSource(Protocol):
    """The images of one prepared data set, on the device that trains.

    Every source gives the same stream: which example, crop and flip comes at which position
    depends on the seed and the epoch alone (:mod:`~protocol.stream`).
    """

    @property
    def train(self) -> Evaluated:
        """The training images, as they are, without crops or flips by chance."""
        ...

    @property
    def validation(self) -> Evaluated | None:
        """The images on which settings are chosen, if some are held out for that."""
        ...

    @property
    def test(self) -> Evaluated:
        """The images on which models are tested."""
        ...

    @property
    def classes(self) -> int:
        """The number of classes."""
        ...

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        ...

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as the model sees it."""
        ...

    def batches(
        self, seed: int, epochs: int, batch_size: int, start: int = 0, part: slice = WHOLE
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Images (m, C, H, W) and labels, int64 (m,), of each update; augmented if the study is.

        Args:
            seed: The run's seed.
            epochs: All epochs of the run.
            batch_size: m.
            start: The updates that are left out, because they are done.
            part: The positions in each batch that are wanted; the others are not read.
        """
        ...

    def every(self, stride: int) -> Tensor:
        """Every ``stride``-th training image, as `train` has it, (n, C, H, W)."""
        ...
